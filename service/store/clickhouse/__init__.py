"""The store for several services at once: ClickHouse over HTTP (``moescope[clickhouse]``)."""
