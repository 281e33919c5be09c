"""The page at `/`: what the running system does, live, and a place to try it."""
