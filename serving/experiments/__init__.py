"""Several model versions live at once: who gets which, what comes of it, and when a new one has proved itself."""
