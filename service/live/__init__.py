"""What the service knows now and what changes with each frame: producers, their states, recent
history, steps.
"""
