"""What is computed from routing traces."""
