"""Events in, exact user state and windows out. Imports nothing above it, and never torch."""
