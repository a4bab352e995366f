"""What the capturer's own threads in the worker need: their device, their pauses, a throttled log."""
