"""The routes, one module a resource. No route imports another."""
