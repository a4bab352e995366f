"""Windows of time over the totals of whole deployments, and what is judged from them."""
