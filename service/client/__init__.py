"""The client of a running service: its settings and HTTP. The command line, the report and the
simulator use it.
"""
