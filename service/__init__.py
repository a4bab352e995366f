"""The side service: ingest, live state, metrics, HTTP API and command line."""
