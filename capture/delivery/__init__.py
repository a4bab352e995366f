"""HTTP from the worker to the service: the connection, the service's answer, when to try again."""
