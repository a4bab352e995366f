"""What a step is: its tokens, phases and numbers, on the device and on the host."""
