"""Grafana boards and Prometheus rules of moescope."""
