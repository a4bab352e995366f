"""Several hosts on this one, and vLLM in each layout that spreads over them."""
