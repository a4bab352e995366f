"""The catalogue of alerts, as data; :mod:`moescope.dashboards.alert_rules` makes the rules of it."""
