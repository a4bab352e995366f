"""The client of a running service: settings and HTTP. The command line, the report and the simulator use it."""
