"""Pictures of the boards' panels, drawn by Grafana's own components from live data: ``make.py`` says how."""
