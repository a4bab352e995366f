"""The HTTP API: one module a resource, one factory for the whole."""
