"""What is elsewhere: where it is, and how that is written."""
