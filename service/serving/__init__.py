"""The process around the application: sockets, TLS, deadlines of connections, memory, signals."""
