"""The page's files as the service hands them out, and the events that keep it live."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from importlib import resources

import httpx
import pytest

from moescope.service.api.app import create_app
from moescope.service.api.routes import live
from moescope.service.serving.server import address_of, listen, make_server
from moescope.service.settings import Settings
from tests.service.conftest import Service
from tests.service.frames import frame

PAGE = resources.files("moescope.service") / "page"


@pytest.mark.parametrize("path", ["/", "/docs", "/redoc"])
def test_the_page_is_served_under_a_strict_policy(service: Service, path: str) -> None:
    response = service.client.get(path)
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in response.headers["content-security-policy"]
    assert "style=" not in response.text
    assert "<style" not in response.text
    assert not re.findall(r"<script(?![^>]*\bsrc=)", response.text)
    assert not re.findall(r"\son\w+=", response.text)


def test_every_file_that_the_page_names_is_there_and_relative(service: Service) -> None:
    seen: set[str] = set()
    pages = (service.client.get(path).text for path in ("/", "/docs", "/redoc"))
    wanted = [name for page in pages for name in re.findall(r'(?:src|href)="([^"#]+)"', page)]
    while wanted:
        path = wanted.pop()
        assert not path.startswith(("/", "http:", "https:")), path
        if path in seen:
            continue
        seen.add(path)
        response = service.client.get(f"/{path}")
        assert response.status_code == 200, path
        assert response.headers["x-content-type-options"] == "nosniff"
        if path.endswith(".js"):
            assert response.headers["content-type"].startswith("text/javascript")
            names = _needed(response.text) + re.findall(r'\b(?:import|here)\("([^"]+)"\)', response.text)
            here = httpx.URL(f"http://h/{path}")
            wanted += [str(here.join(name).path).lstrip("/") for name in names]
    scripts = {f"page/js/{name}" for name in _scripts("")}
    assert scripts <= seen, "scripts that nothing imports"


def _needed(script: str) -> list[str]:
    """What a module needs before it runs."""
    return re.findall(r'^(?:import|export)[^;]*?from "([^"]+)";', script, re.MULTILINE)


def test_the_document_names_all_modules_of_the_first_load_so_that_they_come_at_once() -> None:
    needed: list[str] = []
    scripts = ["page/js/early.js", "page/js/main.js"]
    wanted = [*scripts, "page/js/views/overview.js"]
    while wanted:
        path = wanted.pop(0)
        if path not in needed:
            needed.append(path)
            here = httpx.URL(f"http://h/{path}")
            names = _needed(PAGE.parent.joinpath(path).read_text())
            wanted += [str(here.join(name).path).lstrip("/") for name in names]
    document = (PAGE / "index.html").read_text()
    named = re.findall(r'<link rel="modulepreload" href="([^"]+)"', document)
    assert sorted(named) == sorted(set(needed) - set(scripts)), "index.html: a line for each"


def _scripts(folder: str) -> list[str]:
    found = []
    for item in (PAGE / "js" / folder).iterdir():
        name = f"{folder}{item.name}"
        found += _scripts(f"{name}/") if item.is_dir() else [name]
    return found


def test_unchanged_files_are_not_sent_again(service: Service) -> None:
    first = service.client.get("/page/css/theme.css")
    again = service.client.get("/page/css/theme.css", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = service.client.get("/page/css/theme.css", headers={"If-None-Match": '"other"'})
    assert other.content == first.content


def test_files_are_compressed_for_who_takes_that_and_each_form_has_its_own_tag(service: Service) -> None:
    url, found = "/page/js/main.js", {}
    for encoding in ("gzip", "identity", "gzip;q=0"):
        with service.client.stream("GET", url, headers={"Accept-Encoding": encoding}) as response:
            found[encoding] = response, b"".join(response.iter_raw())
    packed, plain = found["gzip"], found["identity"]
    assert packed[0].headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain[0].headers
    assert found["gzip;q=0"][1] == plain[1]
    assert gzip.decompress(packed[1]) == plain[1] == (PAGE / "js/main.js").read_bytes()
    assert len(packed[1]) < len(plain[1]) / 2
    assert packed[0].headers["vary"] == plain[0].headers["vary"] == "Accept-Encoding"
    tag = packed[0].headers["etag"]
    assert tag != plain[0].headers["etag"]
    for encoding, status in (("gzip", 304), ("identity", 200)):
        asked = {"Accept-Encoding": encoding, "If-None-Match": tag}
        assert service.client.get(url, headers=asked).status_code == status


@pytest.mark.parametrize("path", ["nothing.js", "../api/app.py", "%2e%2e/settings.py", "vendor/README.md"])
def test_only_files_of_the_page_are_served(service: Service, path: str) -> None:
    assert service.client.get(f"/page/{path}").status_code == 404


def test_vendored_files_are_unchanged() -> None:
    listed = re.findall(r"^\| (\S+) \|.*\| ([0-9a-f]{64}) \|$", (PAGE / "vendor/README.md").read_text(), re.M)
    files = {item.name for item in (PAGE / "vendor").iterdir()} - {"README.md", "uPlot.LICENSE"}
    assert {name for name, _ in listed} == files
    for name, digest in listed:
        assert hashlib.sha256((PAGE / "vendor" / name).read_bytes()).hexdigest() == digest


def test_events_tell_of_frames(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    # No heartbeat comes before the stream's deadline, so the second event is there because of the frame.
    monkeypatch.setattr(live, "HEARTBEAT_S", 600.0)
    with httpx.stream("GET", f"{service.url}/v1/live", timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        lines = response.iter_lines()
        assert _next(lines) == {"now": service.clock.now, "frames": 0}
        service.clock.now += 1
        service.push(frame({0: [1, 1]}))
        assert _next(lines) == {"now": service.clock.now, "frames": 1}


def _next(lines: Iterator[str]) -> dict[str, float]:
    for line in lines:
        if line.startswith("data: "):
            found: dict[str, float] = json.loads(line.removeprefix("data: "))
            return found
    raise AssertionError("the stream ended")


def test_a_service_ends_at_once_although_someone_follows_it() -> None:
    settings = Settings(port=0)
    listener = listen(settings)
    server = make_server(create_app(settings))
    server.config.timeout_graceful_shutdown = 600  # the stream must end itself: nothing cuts it before
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    with listener, httpx.stream("GET", f"{address_of(listener)}/v1/live", timeout=60) as response:
        lines = response.iter_lines()
        _next(lines)
        server.should_exit = True
        assert not [line for line in lines if line.startswith("data: ")]
        thread.join(60)
        assert not thread.is_alive(), "it waits for the stream to be cut"
