"""The samples of each part of the catalogue."""
