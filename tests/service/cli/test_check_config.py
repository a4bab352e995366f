"""`moescope check-config`, as operators run it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.service.cli.running import run


def test_check_config_shows_what_would_be_used_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "moescope.toml"
    config.write_text('window_s = 30\nhost = "0.0.0.0"\nstore = "none"\n')
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
        ('tokens_file = "/none.toml"', "the file of tokens /none.toml: it can't be read"),
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
    assert [line for line in done.stderr.splitlines() if "no variable" in line] == [
        "warning: MOESCOPE_METRIC_LEVEL: no variable of moescope. Did you mean MOESCOPE_METRICS_LEVEL?"
    ]


@pytest.mark.parametrize(
    ("level", "told"),
    [("rank", "MoescopeRankImbalance, MoescopeHotExpert"), ("rank", "fire: MoescopeRankImbalance")],
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
