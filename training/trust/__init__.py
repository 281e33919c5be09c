"""Who in a window is trusted: behaviour as numbers, a detector trained on simulated attacks, and its verdicts."""
