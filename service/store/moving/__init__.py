"""Moving the store of a single service, a folder, into a ClickHouse (``moescope migrate``)."""
