"""What the service knows now, and what changes with each frame: producers, recent history, steps."""
