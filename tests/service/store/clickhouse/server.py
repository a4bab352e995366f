"""ClickHouse's HTTP interface, as far as a store needs it, before ClickHouse in this process (chdb).

    python -m tests.service.store.clickhouse.server FOLDER

Prints its port. No current stand-alone server can be had as a package; the SQL, the engine and the client are
the real ones, this transport is not. `POST /fail?times=3&code=503` makes the next requests fail.
"""

from __future__ import annotations

import sys
import threading
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from chdb import session

PASSED_ON = frozenset({"max_partitions_per_insert_block"})
MOST_OF_A_FIELD = 128 * 1024
"""Bytes that a server takes in one field, unless its configuration says more (http_max_field_value_size)."""


class Engine:
    """One session of chdb, for one thread at a time."""

    def __init__(self, folder: Path) -> None:
        self._session = session.Session(str(folder / "data"))
        self._body = folder / "body"
        self._lock = threading.Lock()
        self._database: str | None = None
        self._types: dict[tuple[str | None, str], dict[str, str]] = {}
        self.failures: list[int] = []

    def answer(self, query: dict[str, str], body: bytes) -> bytes:
        """What the server would answer to a query in ``query`` or in ``body``."""
        if body.startswith(b"INSERT"):  # the statement, a line end, the rows
            statement, _, data = body.partition(b"\n")
            sql = statement.decode()
        else:
            sql, data = query.get("query") or body.decode(), b""
        parameters = {
            name.removeprefix("param_"): value for name, value in query.items() if name.startswith("param_")
        }
        with self._lock:
            self._use(query.get("database") or "default")
            if sql.startswith("INSERT") and " FORMAT " in sql:
                return self._insert(sql, data, settings_of(query))
            if not sql.lstrip().startswith(("SELECT", "INSERT")):
                self._database = None  # tables and databases may be others now
                self._types.clear()
            head, found, kind = sql.rstrip().rpartition("FORMAT ")
            return self._run(head if found else sql, parameters, kind.strip() if found else "TabSeparated")

    def _use(self, database: str) -> None:
        """An HTTP request has no database but its own."""
        if database != self._database:
            self._database = None
            self._run(f"USE {database}", {})
            self._database = database

    def _insert(self, sql: str, data: bytes, settings: str) -> bytes:
        """`INSERT INTO table (columns) FORMAT kind`: chdb takes data from a file only."""
        head, _, kind = sql.rpartition(" FORMAT ")
        table, _, rest = head.removeprefix("INSERT INTO ").partition("(")
        names = [name.strip(" `\n") for name in rest.rstrip(" )\n").split(",")]
        types = self._types_of(table)
        structure = ", ".join(f"`{name}` {types[name]}" for name in names).replace("'", "\\'")
        self._body.write_bytes(data)
        return self._run(
            f"{head} SELECT * FROM file('{self._body}', {kind.split()[0]}, '{structure}'){settings}",
            {},
            "TabSeparated",
        )

    def _types_of(self, table: str) -> dict[str, str]:
        """The types of a table's columns, which a server knows without being asked again."""
        found = self._types.get((self._database, table))
        if found is None:
            described = self._run(f"DESCRIBE TABLE {table}", {}, "TabSeparated").decode()
            found = dict(line.split("\t")[:2] for line in described.splitlines())
            self._types[self._database, table] = found
        return found

    def _run(self, sql: str, parameters: dict[str, str], kind: str = "TabSeparated") -> bytes:
        answer: bytes = self._session.query(sql, kind, params=parameters).bytes()
        return answer


def settings_of(query: dict[str, str]) -> str:
    """The settings of an insert that this transport passes on to the engine, as a clause."""
    given = {name: value for name, value in query.items() if name in PASSED_ON}
    return f" SETTINGS {', '.join(f'{name} = {value}' for name, value in given.items())}" if given else ""


def form_of(kind: str, body: bytes) -> dict[str, str]:
    """The fields of a multipart form: the client sends parameters so that are too long for the URL."""
    head = f"Content-Type: {kind}\r\n\r\n".encode()
    message = BytesParser(policy=HTTP).parsebytes(head + body)
    found = {}
    for part in message.iter_parts():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        assert isinstance(name, str)
        assert isinstance(content, bytes)
        if len(content) > MOST_OF_A_FIELD:
            raise ValueError("Code: 1000. Poco::Exception: HTML Form Exception: Field value too long")
        found[name] = content.decode()
    return found


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one packet: else its end waits 40 ms for the acknowledgement of its begin
    disable_nagle_algorithm = True
    engine: Engine

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query, keep_blank_values=True))
        kind = self.headers.get("content-type", "")
        if url.path == "/fail":
            self.engine.failures += [int(query["code"])] * int(query["times"])
            self._send(200, b"")
        elif self.engine.failures:
            self._send(self.engine.failures.pop(), b"Service Unavailable")
        else:
            try:
                if kind.startswith("multipart/form-data"):
                    query, body = query | form_of(kind, body), b""
                self._send(200, self.engine.answer(query, body))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
                text = str(error)
                code = text.partition("Code: ")[2].partition(".")[0] or "1002"
                self._send(500, text.encode(), {"X-ClickHouse-Exception-Code": code})

    def do_GET(self) -> None:
        self.do_POST()

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"content-length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing."""


def main() -> None:
    """Serve until killed."""
    Handler.engine = Engine(Path(sys.argv[1]))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1], flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
