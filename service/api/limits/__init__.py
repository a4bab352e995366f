"""What bounds a request: access, sizes, turns, work that many share."""
