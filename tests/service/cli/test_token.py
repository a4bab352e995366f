"""`moescope token`, as operators run it."""

from __future__ import annotations

from pathlib import Path

from moescope.service.auth.tokens import digest_of, read_tokens
from tests.service.cli.running import run


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
