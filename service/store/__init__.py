"""What outlives the service: totals, their history, and routing traces, behind one small interface."""
