"""Drift: how far routing has moved from a pinned baseline, and from the hour before."""
