"""The schema as one server, and as the servers of a cluster, are told it."""

from __future__ import annotations

import pytest

from moescope.service.settings import Settings
from moescope.service.store.clickhouse.connection import Connection
from moescope.service.store.clickhouse.schema import MIGRATIONS, VERSIONS, for_cluster

STATEMENTS = ["CREATE DATABASE IF NOT EXISTS x", VERSIONS, *(sql for step in MIGRATIONS for sql in step)]


@pytest.mark.parametrize("number", range(len(STATEMENTS)))
def test_each_statement_is_one_of_a_cluster_too(clickhouse: str, number: int) -> None:
    """The engine parses it; no cluster is there that could run it."""
    connection = Connection(f"{clickhouse}/test_syntax")
    told = for_cluster(STATEMENTS[number], "a-b.c")
    [*lines] = connection.rows(f"EXPLAIN AST {told}", "t")
    tree = "\n".join(line for (line,) in lines)
    if STATEMENTS[number].startswith("CREATE TABLE"):
        assert "CreateQuery" in tree
        assert "Function ReplicatedReplacingMergeTree" in tree
        assert "ON CLUSTER 'a-b.c'" in told
    else:
        assert ("ON CLUSTER" in told) == STATEMENTS[number].startswith("CREATE")
    assert for_cluster(STATEMENTS[number], None) == STATEMENTS[number]
    connection.close()


def test_a_cluster_has_a_plain_name() -> None:
    with pytest.raises(ValueError, match="clickhouse_cluster"):
        Settings(clickhouse_cluster="x'; DROP TABLE account; --")
