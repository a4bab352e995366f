"""The gates that take long: what the service promises under load, faults, bad input and slow clients."""
