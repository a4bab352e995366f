"""Prometheus metrics: a catalogue that is data, and the collector that fills it."""
