"""What it costs that EP ranks wait, in every layer of every step, for the busiest one."""
