"""Snapshots of the state with its offsets: taken, packed, stored, restored."""
