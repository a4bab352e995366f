"""Every route with every kind of credentials; tokens and certificates that change while the service runs."""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from starlette.datastructures import URL
from starlette.requests import Request
from starlette.routing import Route

from moescope.capture import wire
from moescope.service.api.app import create_app
from moescope.service.auth.book import TokenBook
from moescope.service.auth.sessions import COOKIE, SESSION_S
from moescope.service.auth.tokens import TokenError, new_token, read_tokens
from moescope.service.settings import Settings
from tests.service.conftest import Clock, Service, open_service
from tests.service.frames import frame

TOKENS = {
    name: f"{name}-0123456789abcdef" for name in ("vllm", "grafana", "root", "both", "old-vllm", "old-reader")
}
TOKENS_FILE = "".join(
    f'[[tokens]]\nname = "{name}"\nscopes = {scopes}\n'
    f'sha256 = "{hashlib.sha256(TOKENS[name].encode()).hexdigest()}"\n{more}\n'
    for name, scopes, more in (
        ("vllm", ["ingest"], ""),
        ("grafana", ["read"], "expires = 2099-01-01"),
        ("root", ["admin"], ""),
        ("both", ["ingest", "read"], ""),
        # The tests' clock stands at 2023-11-14T22:15:00Z.
        ("old-vllm", ["ingest"], "expires = 2023-11-14T22:15:00Z"),
        ("old-reader", ["read"], "expires = 2023-11-14"),
    )
)
OPEN = {"/", "/page/{path:path}", "/healthz", "/readyz"}


def _routes() -> list[tuple[str, str]]:
    """Every (method, path) of the application, those of FastAPI's own pages included."""
    app = create_app(Settings(port=0))
    found = [route for route in app.routes if isinstance(route, Route)]
    for included in app.routes:  # newer versions keep an included router as one item
        router = getattr(included, "original_router", None)
        found += [route for route in getattr(router, "routes", []) if isinstance(route, Route)]
    pairs = {(method, route.path) for route in found for method in route.methods or ()}
    assert len(pairs) > 25, "the routes were not found"
    return sorted(pairs)


def _right(method: str, path: str) -> str:
    """What a route must need: written apart from the code on purpose, and closed for what it doesn't know."""
    if method in ("GET", "HEAD"):
        return "open" if path in OPEN else "read"
    if path in ("/v1/ingest", "/v1/traces"):
        return "ingest"
    if path == "/v1/session":
        return {"POST": "read", "DELETE": "open"}[method]
    return "admin"


@pytest.fixture
def tokens_file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.toml"
    path.write_text(TOKENS_FILE)
    return path


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@pytest.mark.parametrize(("method", "path"), _routes())
def test_every_route_with_every_credential(shared: Service, method: str, path: str) -> None:
    right = _right(method, path)
    allowed = {
        "open": set(TOKENS) | {"none", "wrong"},
        "read": {"grafana", "root", "both"},
        "ingest": {"vllm", "root", "both"},
        "admin": {"root"},
    }[right]
    url = re.sub(r"\{[^}]*\}", "x", path)
    credentials: dict[str, dict[str, str]] = {
        "none": {},
        "wrong": bearer("wrong-0123456789abcdef"),
        "no scheme": {"authorization": TOKENS["root"]},
        "another scheme": {"authorization": f"Basic {TOKENS['root']}"},
        "empty": {"authorization": "Bearer"},
        "cut": bearer(TOKENS["root"][:-1]),
        "longer": bearer(TOKENS["root"] + "x"),
        "cookie": {"cookie": f"{COOKIE}=AAAA"},
        **{name: bearer(token) for name, token in TOKENS.items()},
    }
    for name, headers in credentials.items():
        with shared.client.stream(method, url, headers=headers) as answer:
            status = answer.status_code
            if name in allowed or right == "open":
                assert status not in (401, 403), (name, status)
                continue
            expired = name.startswith("old")
            known = name in TOKENS and not expired
            assert status == (403 if known else 401), (name, status)
            if method != "HEAD":
                problem = answer.read() and answer.json()
                assert problem["status"] == status
                assert ("expired" in problem["title"]) is expired
            for token in TOKENS.values():
                assert token not in str(answer.headers)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for all routes: what these tests ask changes nothing."""
    path = tmp_path_factory.mktemp("tokens") / "tokens.toml"
    path.write_text(TOKENS_FILE)
    clock = Clock()
    service, end = open_service(clock, clock, tokens_file=path)
    yield service
    end()


@pytest.fixture
def guarded(start_service: Callable[..., Service], tokens_file: Path) -> Service:
    return start_service(tokens_file=tokens_file)


def test_unknown_paths_and_methods_are_closed_too(guarded: Service) -> None:
    for method, url in (
        ("GET", "/v2/new"),
        ("DELETE", "/v1/ranks"),
        ("PUT", "/"),
        ("GET", "/v1/../v1/ranks"),
    ):
        assert guarded.client.request(method, url).status_code == 401, url
    assert guarded.client.request("DELETE", "/v1/ranks", headers=bearer(TOKENS["grafana"])).status_code == 403


def test_the_host_header_opens_nothing(guarded: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    # As Starlette 0.46 had it, which is allowed: from Host `x/page/?` it made the path `/page/`.
    monkeypatch.setattr(Request, "url", property(lambda _: URL("http://x/page/?/metrics")))
    for host in ("x/page/?", "x/?", "x/healthz#"):
        assert guarded.client.get("/metrics", headers={"host": host}).status_code == 401, host


def test_a_browser_signs_in_for_reading_only(guarded: Service) -> None:
    client = guarded.client
    assert client.post("/v1/session").status_code == 401
    assert client.post("/v1/session", headers=bearer(TOKENS["vllm"])).status_code == 403
    answer = client.post("/v1/session", headers=bearer(TOKENS["root"]))
    assert answer.status_code == 204
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert client.get("/v1/ranks").status_code == 200  # httpx keeps the cookie
    with client.stream("GET", "/v1/live") as live:
        assert live.status_code == 200
    assert client.post("/v1/ingest").status_code == 401, "a cookie must not send frames, whatever its token"
    # What was tampered with, and what is over, is no session.
    value = client.cookies[COOKIE].strip('"')
    client.cookies.clear()
    for other in (value[:-8] + "AAAAAAA=", ("B" if value[0] == "A" else "A") + value[1:], value[:40]):
        assert client.get("/v1/ranks", headers={"cookie": f"{COOKIE}={other}"}).status_code == 401, other
    assert client.get("/v1/ranks", headers={"cookie": f"{COOKIE}={value}"}).status_code == 200
    # Browsers send the cookies of other ports of a host too, and not all are written as they should be.
    for other in ('theme={"dark": true}', "two words=1", "flag", "a:b/c=1"):
        for cookie in (f"{other}; {COOKIE}={value}", f"{COOKIE}={value}; {other}"):
            assert client.get("/v1/ranks", headers={"cookie": cookie}).status_code == 200, cookie
    guarded.clock.now += SESSION_S
    assert client.get("/v1/ranks", headers={"cookie": f"{COOKIE}={value}"}).status_code == 401


def test_tokens_are_read_again_when_the_file_changes(
    guarded: Service, tokens_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client, old, new = guarded.client, bearer(TOKENS["grafana"]), new_token()
    client.post("/v1/session", headers=old)
    with client.stream("GET", "/v1/live", headers=old) as live:
        digest = hashlib.sha256(new.encode()).hexdigest()
        _replace(tokens_file, f'[[tokens]]\nname = "new"\nscopes = ["read"]\nsha256 = "{digest}"\n')
        _until(lambda: client.get("/v1/ranks", headers=bearer(new)).status_code == 200)
        assert client.get("/v1/ranks", headers=old).status_code == 401
        assert client.get("/v1/ranks").status_code == 401, "a session must end with its token"
        for _ in live.iter_lines():  # and so must an answer without an end
            pass
    with caplog.at_level(logging.ERROR, "moescope"):
        logging.getLogger("moescope").propagate = True
        _replace(tokens_file, "[[tokens]]\nname = 7\n")
        _until(lambda: "those from before stay valid" in caplog.text)
    assert client.get("/v1/ranks", headers=bearer(new)).status_code == 200


def test_a_stream_ends_when_its_token_may_no_longer_read(guarded: Service, tokens_file: Path) -> None:
    client, token = guarded.client, bearer(TOKENS["grafana"])
    with client.stream("GET", "/v1/live", headers=token) as live:
        assert live.status_code == 200
        granted, less = (f'"grafana"\nscopes = {scopes}' for scopes in (["read"], ["ingest"]))
        assert granted in TOKENS_FILE
        _replace(tokens_file, TOKENS_FILE.replace(granted, less))
        _until(lambda: client.get("/v1/ranks", headers=token).status_code == 403)
        at = time.monotonic()
        for _ in live.iter_lines():  # a second is what is promised, and a busy machine may take more
            assert time.monotonic() - at < 30, "it goes on"


def test_a_token_that_an_entry_has_in_a_file_is_read_again(
    start_service: Callable[..., Service], tmp_path: Path
) -> None:
    secret, tokens = tmp_path / "secret", tmp_path / "tokens.toml"
    secret.write_text("the-first-of-the-tokens")
    tokens.write_text('[[tokens]]\nname = "a"\nscopes = ["read"]\nfile = "secret"\n')
    client = start_service(tokens_file=tokens).client
    assert client.get("/v1/ranks", headers=bearer("the-first-of-the-tokens")).status_code == 200
    _replace(secret, "the-second-of-the-tokens")
    _until(lambda: client.get("/v1/ranks", headers=bearer("the-second-of-the-tokens")).status_code == 200)
    assert client.get("/v1/ranks", headers=bearer("the-first-of-the-tokens")).status_code == 401


def _replace(path: Path, text: str) -> None:
    other = path.with_suffix(".new")
    other.write_text(text)
    other.replace(path)


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_one_token_in_a_file_may_do_everything(start_service: Callable[..., Service], tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("a-token-from-a-file\n")
    service = start_service(token_file=path)
    headers = bearer("a-token-from-a-file")
    assert service.push(frame({0: [1, 1]}), **headers).status_code == 200
    assert service.client.get("/metrics", headers=headers).status_code == 200
    assert service.client.get("/metrics").status_code == 401
    path.write_text("another-token-now\n")
    _until(lambda: service.client.get("/metrics", headers=bearer("another-token-now")).status_code == 200)


def test_reading_can_be_left_open(start_service: Callable[..., Service]) -> None:
    service = start_service(token="s3cret", open_read=True)
    assert service.client.get("/v1/ranks").status_code == 200
    assert service.push(frame({0: [1, 1]})).status_code == 401


def test_frames_turned_away_are_counted(guarded: Service) -> None:
    guarded.push(frame({0: [1, 1]}))
    guarded.push(frame({0: [1, 1]}), **bearer(TOKENS["grafana"]))
    text = guarded.client.get("/metrics", headers=bearer(TOKENS["both"])).text
    for reason in ("unauthorized", "forbidden"):
        assert f'moescope_frames_total{{reason="{reason}",result="refused"}} 1.0' in text


def test_a_large_body_without_a_token_is_answered_and_the_connection_goes_on(guarded: Service) -> None:
    body = b"\0" * (2 << 20)
    with httpx.Client(base_url=guarded.url, timeout=60) as client:
        headers = {"content-type": wire.CONTENT_TYPE}
        assert client.post("/v1/ingest", content=body, headers=headers).status_code == 401
        assert client.get("/healthz").status_code == 200


GOOD = f'sha256 = "{"ab" * 32}"'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must hold \[\[tokens\]\] tables"),
        ("[other]\n", r"must hold \[\[tokens\]\] tables"),
        ("[[tokens", "not valid TOML"),
        ("tokens = [1]", r"tokens\[1\] is not a table"),
        (f'[[tokens]]\nname = "a b"\nscopes = ["read"]\n{GOOD}', r"tokens\[1\]: name:"),
        (f'[[tokens]]\nname = "a"\nscopes = ["reed"]\n{GOOD}', r"scopes: a list of admin, ingest, read"),
        (f'[[tokens]]\nname = "a"\nscopes = []\n{GOOD}', r"scopes:"),
        (f'[[tokens]]\nname = "a"\nscopes = [["read"]]\n{GOOD}', r"scopes: a list of admin, ingest, read"),
        ('[[tokens]]\nname = "a"\nscopes = ["read"]\n', "give sha256"),
        ('[[tokens]]\nname = "a"\nscopes = ["read"]\nsha256 = "abc"', "64 hexadecimal digits"),
        ('[[tokens]]\nname = "a"\nscopes = ["read"]\nfile = "short"', "shorter than 16"),
        ('[[tokens]]\nname = "a"\nscopes = ["read"]\nfile = "none"', "can't be read"),
        (f'[[tokens]]\nname = "a"\nscopes = ["read"]\n{GOOD}\nexpires = "soon"', "expires: a date"),
        (f'[[tokens]]\nname = "a"\nscopes = ["read"]\n{GOOD}\nexpires = 2027-01-01T00:00:00', "expires: "),
        (f'[[tokens]]\nname = "a"\nscopes = ["read"]\n{GOOD}\ntoken = "x"', "token: no such key"),
        (f'[[tokens]]\nname = "a"\nscopes = ["read"]\n{GOOD}\n' * 2, "the same name"),
        ("tokens = " + "[" * 10_000, "nested too deeply"),
        ("[[tokens]]\nname = '\0'", "not valid TOML"),
        ('[[tokens]]\nname = "a"\nscopes = ["read"]\nfile = "a\\u0000b"', "can't be read: embedded null"),
    ],
)
def test_a_bad_file_of_tokens_says_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "short").write_text("short")
    path = tmp_path / "tokens.toml"
    path.write_text(text)
    with pytest.raises(TokenError, match=message) as caught:
        read_tokens(path)
    assert "tokens.toml" in str(caught.value)


def test_tokens_never_show(tokens_file: Path) -> None:
    shown = repr(read_tokens(tokens_file))
    assert "digest" not in shown
    assert "grafana" in shown


@pytest.mark.parametrize("bad", ["tokens = " + "[" * 10_000, 'x = "\0"', '[[tokens]]\nfile = "a\\u0000b"'])
def test_bad_tokens_leave_those_from_before_valid(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, bad: str
) -> None:
    """Each of them ended the service when it read the file again."""
    path = tmp_path / "tokens.toml"
    path.write_text(f'[[tokens]]\nname = "a"\nscopes = ["read"]\n{GOOD}')
    book = TokenBook([], {path: read_tokens})
    path.write_text(bad)
    book.reload_if_changed()
    assert [token.name for token in book.tokens] == ["a"]
    assert "those from before stay valid" in caplog.text
    path.write_bytes(b"\xef\xbb\xbf" + f'[[tokens]]\nname = "b"\nscopes = ["read"]\n{GOOD}'.encode())
    book.reload_if_changed()
    assert [token.name for token in book.tokens] == ["b"]
