"""A window of a running service as one self-contained page: ``moescope report``."""
