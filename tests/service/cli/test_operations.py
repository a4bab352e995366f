"""check-config, token, backup and restore, as operators run them; what a signal to end does."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from moescope.service.auth.tokens import digest_of, read_tokens
from moescope.service.store.sqlite.schema import APPLICATION_ID
from moescope.service.store.sqlite.store import FILE
from tests.service.cli.running import run
from tests.service.conftest import Service
from tests.service.frames import frame


def test_check_config_shows_what_would_be_used_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "moescope.toml"
    config.write_text('window_s = 30\nhost = "0.0.0.0"\n')
    monkeypatch.setenv("MOESCOPE_TOKEN", "short-secret")
    done = run("check-config", "--config", config)
    assert done.returncode == 0, done.output
    assert "window_s = 30.0   (default: 60.0)" in done.stdout
    assert "token token: admin" in done.stdout
    assert "short-secret" not in done.output
    for word in ("clear text", "shorter than 16", "in memory only"):
        assert word in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('store = "/etc/hostname/below"', "store: /etc/hostname is not a folder"),
        ("port = 70000", "port: "),
        ('host = "0.0.0.0"', "MOESCOPE_TOKEN_FILE"),
        ('tokens_file = "/none.toml"', "the file of tokens /none.toml can't be read"),
        ('tls_key = "/k.pem"', "need tls_cert"),
        ('tls_cert = "/c.pem"', "tls_cert /c.pem"),
        ('store = "/etc/hostname"', "is not a folder"),
    ],
)
def test_check_config_says_what_to_mend(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "moescope.toml"
    config.write_text(text)
    done = run("check-config", "--config", config)
    assert done.returncode == 2
    assert message in done.stderr
    assert "can be used" not in done.output


def test_check_config_warns_of_a_misspelt_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("METRIC_LEVEL", "METRICS_LEVEL", "TRACE_RATE"):
        monkeypatch.setenv(f"MOESCOPE_{name}", "rank")
    done = run("check-config")
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if "misspelt" in line] == [
        "warning: MOESCOPE_METRIC_LEVEL: no variable of moescope; is it misspelt?"
    ]


@pytest.mark.parametrize(
    ("level", "told"),
    [("rank", "MoescopeRankImbalance, MoescopeHotExpert"), ("layer_rank", "fire: MoescopeExpertDrift")],
)
def test_check_config_tells_which_alerts_can_not_fire(
    monkeypatch: pytest.MonkeyPatch, level: str, told: str
) -> None:
    monkeypatch.setenv("MOESCOPE_METRICS_LEVEL", level)
    (line,) = (line for line in run("check-config").stderr.splitlines() if "metrics_level" in line)
    assert line.startswith(f"warning: metrics_level: at {level} these alerts can't fire: ")
    assert told in line
    monkeypatch.setenv("MOESCOPE_METRICS_LEVEL", "layer_expert")
    assert "alerts" not in run("check-config").stderr


def test_a_new_token_and_its_entry_fit(tmp_path: Path) -> None:
    done = run("token", "vllm", "--scope", "ingest", "--scope", "read", "--expires", "2099-01-31")
    assert done.returncode == 0
    path = tmp_path / "tokens.toml"
    path.write_text(done.stderr)
    [token] = read_tokens(path)
    assert token.digest == digest_of(done.stdout.strip())
    assert sorted(token.scopes) == ["ingest", "read"]
    assert run("token", "x", "--scope", "everything").returncode == 2


def test_a_new_token_is_added_to_a_file_that_stays_good(tmp_path: Path) -> None:
    path = tmp_path / "tokens.toml"
    first = run("token", "vllm", "--scope", "ingest", "--add-to", path)
    assert (first.returncode, first.stderr) == (0, "")
    assert path.stat().st_mode & 0o777 == 0o600
    second = run("token", "grafana", "--scope", "read", "--expires", "2099-01-31", "--add-to", path)
    made = read_tokens(path)
    assert [token.name for token in made] == ["vllm", "grafana"]
    assert [token.digest for token in made] == [digest_of(done.stdout.strip()) for done in (first, second)]
    before = path.read_text()
    for arguments, said in (
        (("vllm", "--scope", "read"), "two entries have the same name"),
        (('a"b', "--scope", "read"), "name: 1 to 64 letters"),
        (("ab", "--scope", "read", "--expires", "tomorrow"), "'tomorrow' is no date"),
        (("ab", "--scope", "read", "--expires", "20990131"), "'20990131' is no date"),
    ):
        done = run("token", *arguments, "--add-to", path)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
    assert path.read_text() == before


def test_a_clickhouse_is_no_folder_to_copy_and_its_password_stays_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOESCOPE_STORE", "clickhouse://user:hidden@127.0.0.1:1/db")
    for command in ("backup", "restore"):
        done = run(command, tmp_path / "copy.sqlite")
        assert done.returncode == 2
        assert "its own BACKUP" in done.stderr
        assert "hidden" not in done.output
    checked = run("check-config")
    assert "whether ClickHouse answers was not tried" in checked.stderr
    assert "hidden" not in checked.output


def test_backup_while_frames_come_and_restore(start_service: Callable[..., Service], tmp_path: Path) -> None:
    folder, file = tmp_path / "store", tmp_path / "copy.sqlite"
    service = start_service(store=folder, use_clock=time.time, max_frames_per_s=10_000)
    stop, sent = threading.Event(), [0]

    def push() -> None:
        while not stop.is_set():
            n = sent[0] + 1
            assert service.push(frame({0: [n, n]}, seq=n)).status_code == 200
            sent[0] = n

    thread = threading.Thread(target=push)
    thread.start()
    try:
        while sent[0] < 20:
            time.sleep(0.01)
        before = sent[0]
        done = run("backup", file, "--store", folder)
        after = sent[0]
    finally:
        stop.set()
        thread.join()
    assert done.returncode == 0, done.output
    assert "1 producers" in done.stdout
    assert run("backup", file, "--store", folder).returncode == 2, "a file is never overwritten"
    taken = run("restore", file, "--store", folder, "--force").stderr
    assert "failed: another service has it" in taken
    start_service.end_all()  # type: ignore[attr-defined]

    other = tmp_path / "other"
    assert run("restore", file, "--store", other).returncode == 0
    assert "give --force" in run("restore", file, "--store", other).stderr
    done = run("restore", file, "--store", other, "--force")
    assert (done.returncode, len(list(other.glob("*.before-restore-*")))) == (0, 1)
    service = start_service(store=other)
    [layer] = service.get("/v1/histogram")["layers"]
    assert before <= layer["counts"][0] <= after + 1
    assert not list(tmp_path.glob(".*.part"))


def test_a_copy_that_is_none_or_damaged_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    file = tmp_path / "copy"
    assert "there is no file" in run("restore", file, "--store", folder).stderr
    file.write_bytes(b"no database at all" * 100)
    assert "failed" in run("restore", file, "--store", folder).stderr
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as other, other:
        other.execute("CREATE TABLE t (x)")
    assert (
        "no copy of a moescope store" in run("restore", tmp_path / "other.sqlite", "--store", folder).stderr
    )
    with closing(sqlite3.connect(tmp_path / "newer.sqlite")) as newer, newer:
        newer.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        newer.execute("PRAGMA user_version = 999")
    assert "has schema 999" in run("restore", tmp_path / "newer.sqlite", "--store", folder).stderr
    assert not (folder / FILE).exists()
    assert "there is no store" in run("backup", tmp_path / "x", "--store", folder).stderr
