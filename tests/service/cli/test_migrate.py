"""The command that moves a folder's store into a ClickHouse."""

from __future__ import annotations

import uuid
from contextlib import closing
from pathlib import Path

import pytest

from moescope.service.store.clickhouse.store import ClickHouseStore
from moescope.service.store.limits import Retention
from moescope.service.store.moving import tally
from moescope.service.store.sqlite.store import SqliteStore
from tests.service.cli.running import run, run_in_terminal
from tests.service.store.moving.folders import RANKS, SECONDS, TRACES, check, make_folder


@pytest.fixture
def url(clickhouse: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database of its own; the services keep all that is of 2023."""
    for name in ("1S", "10S", "5MIN", "TRACES"):
        monkeypatch.setenv(f"MOESCOPE_KEEP_{name}_S", "1e10")
    return f"{clickhouse}/test_{uuid.uuid4().hex}"


def _counts(text: str) -> dict[str, tuple[str, ...]]:
    """By what is counted: both sides' counts, and what is said of them."""
    rows = (line.rsplit("  ", 1) for line in text.splitlines() if line[:1].isspace() or line[:1].isalpha())
    found = {}
    for row in rows:
        words = "  ".join(row).split()
        at = next((i for i, word in enumerate(words) if word.replace(",", "").isdigit()), None)
        if at:
            found[" ".join(words[:at])] = tuple(words[at:])
    return found


def test_a_folder_is_moved_and_both_sides_are_counted(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    done = run("migrate", "--from", tmp_path, "--to", url)
    assert (done.returncode, done.stderr) == (0, "")
    counts = _counts(done.stdout)
    assert counts["producers"] == (str(RANKS), str(RANKS))
    assert counts["snapshots"] == (str(RANKS * SECONDS),) * 2
    assert counts["requests"] == (str(TRACES),) * 2
    assert counts["documents: baseline"] == ("1", "1")
    assert "DIFFERS" not in done.stdout
    assert str(tmp_path) in done.stdout.splitlines()[0]
    assert done.stdout.splitlines()[-1] == (
        f"All is in {url.rpartition('/')[0]}. The folder is as it was: keep it until you trust the copy."
    )
    check(url)
    again = run("migrate", "--from", tmp_path, "--to", url)
    assert again.returncode == 0
    assert "nothing is written again" in again.stdout


def test_the_address_comes_from_the_settings_and_a_password_is_on_no_command_line(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path / "store")
    secret = url.replace("clickhouse://", "clickhouse://me:hidden@")
    done = run("migrate", "--from", tmp_path / "store", "--to", secret)
    assert done.returncode == 2
    assert "others can see a password on a command line: give the URL as MOESCOPE_STORE" in done.stderr
    assert "hidden" not in done.output
    for wrong in ("/a/folder", "postgres://me:hidden@db/x"):
        done = run("migrate", "--from", tmp_path / "store", "--to", wrong)
        assert done.returncode == 2
        assert "hidden" not in done.output
    done = run("migrate", "--from", tmp_path / "store")
    assert done.returncode == 2
    assert "where to? Give --to, or MOESCOPE_STORE" in done.stderr
    config = tmp_path / "moescope.toml"
    config.write_text(f'store = "{url}"\n')
    assert run("migrate", "--from", tmp_path / "store", "--config", config).returncode == 0
    monkeypatch.setenv("MOESCOPE_STORE", url.replace("clickhouse://", "clickhouse://default:@"))
    assert "nothing is written again" in run("migrate", "--from", tmp_path / "store").stdout


def test_what_keeps_a_folder_from_being_moved(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path / "store")
    with closing(SqliteStore(tmp_path / "store", Retention())):
        done = run("migrate", "--from", tmp_path / "store", "--to", url)
    assert (done.returncode, done.stdout) == (2, "")
    assert "a service has it. Stop the service first" in done.stderr
    done = run("migrate", "--from", tmp_path, "--to", url)
    assert done.returncode == 2
    assert "there is no store in" in done.stderr
    done = run("migrate", "--from", tmp_path / "store", "--to", "clickhouse://127.0.0.1:1")
    assert done.returncode == 8
    assert "Give the command again: it goes on" in done.stderr
    assert run("migrate", "--from", tmp_path / "store", "--to", url).returncode == 0
    make_folder(tmp_path / "other", name="other")
    done = run("migrate", "--from", tmp_path / "other", "--to", url)
    assert done.returncode == 2
    assert "give --merge" in done.stderr
    assert run("migrate", "--from", tmp_path / "other", "--to", url, "--merge").returncode == 0


def test_a_difference_is_an_exit_code_of_its_own_and_another_run_mends_it(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path)
    count = tally.Teller.tally

    def losing(self: tally.Teller, *arguments: object) -> tally.Tally:
        with closing(ClickHouseStore(url, Retention())) as store:
            store.connection.command("DELETE FROM snapshot WHERE dp_rank = 1 AND at_ms % 2000 = 0")
        return count(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tally.Teller, "tally", losing)
    done = run("migrate", "--from", tmp_path, "--to", url)
    assert done.returncode == 9
    whole = RANKS * SECONDS
    assert _counts(done.stdout)["snapshots"] == (str(whole), str(whole - SECONDS // 2), "DIFFERS")
    assert "They differ: give the command again" in done.stdout
    monkeypatch.undo()
    for name in ("1S", "10S", "5MIN", "TRACES"):
        monkeypatch.setenv(f"MOESCOPE_KEEP_{name}_S", "1e10")
    done = run("migrate", "--from", tmp_path, "--to", url)
    assert done.returncode == 0
    check(url)


def test_a_terminal_shows_how_far_it_is(url: str, tmp_path: Path) -> None:
    make_folder(tmp_path)
    done = run_in_terminal("migrate", "--from", tmp_path, "--to", url)
    assert done.returncode == 0
    assert "DIFFERS" not in done.stdout


def test_what_cannot_be_read_is_told_and_what_is_too_old(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_folder(tmp_path)
    with closing(SqliteStore(tmp_path, Retention())) as store:
        store._writer.execute("UPDATE producer SET account = x'00' WHERE dp_rank = 1")
    monkeypatch.delenv("MOESCOPE_KEEP_TRACES_S")
    done = run("migrate", "--from", tmp_path, "--to", url)
    assert done.returncode == 0
    assert "Left out, since they can't be read: 1 producers: ('prod', 'tiny', 1, 0, 0): " in done.stdout
    assert f"Left out for their age, by keep_*: {TRACES} requests." in done.stdout
