"""Settings from flags, environment and file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from moescope.service.settings import ClickHouseUrl, MetricsLevel, Settings, SettingsError, is_loopback
from moescope.service.settings_document import markdown
from moescope.service.settings_sources import load_settings, unknown_variables

ROOT = Path(__file__).parents[2]


def test_defaults_are_loopback_and_9890() -> None:
    settings = load_settings(None, {})
    assert (settings.host, settings.port, settings.token) == ("127.0.0.1", 9890, None)
    assert settings.metrics_level is MetricsLevel.LAYER_RANK


def test_flags_win_over_environment_which_wins_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "moescope.toml"
    config.write_text('port = 1\nwindow_s = 30\nmin_tokens = 7\nmetrics_level = "rank"\n')
    monkeypatch.setenv("MOESCOPE_PORT", "2")
    monkeypatch.setenv("MOESCOPE_WINDOW_S", "20")
    settings = load_settings(config, {"port": 3, "host": None})
    assert (settings.port, settings.window_s, settings.min_tokens) == (3, 20, 7)
    assert settings.metrics_level is MetricsLevel.RANK


def test_the_capturers_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ENDPOINT", "INTERVAL", "ON_ERROR", "SERVER", "SOMETHING_NEW"):
        monkeypatch.setenv(f"MOESCOPE_{name}", "x")
    monkeypatch.setenv("MOESCOPE_TOKEN", "secret")
    settings = load_settings(None, {})
    assert settings.token is not None
    assert settings.token.get_secret_value() == "secret"
    assert "secret" not in repr(settings)


def test_what_kubernetes_says_of_a_service_called_moescope_is_no_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It sets MOESCOPE_PORT in all containers of the namespace."""
    for name in ("MOESCOPE", "MOESCOPE_EU"):
        monkeypatch.setenv(f"{name}_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv(f"{name}_SERVICE_PORT_HTTP", "9890")
        monkeypatch.setenv(f"{name}_PORT", "tcp://10.0.0.1:9890")
        monkeypatch.setenv(f"{name}_PORT_9890_TCP_ADDR", "10.0.0.1")
    monkeypatch.setenv("MOESCOPE_US_PORT", "1")
    config = tmp_path / "moescope.toml"
    config.write_text("port = 9999")
    assert load_settings(None, {}).port == 9890
    assert load_settings(config, {}).port == 9999
    assert [line.partition(":")[0] for line in unknown_variables()] == ["MOESCOPE_US_PORT"]
    monkeypatch.setenv("MOESCOPE_PORT", "http://10.0.0.1:9890")
    with pytest.raises(SettingsError, match="port: "):
        load_settings(None, {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("port = 70000", r"^port: .*65535.*--port, MOESCOPE_PORT or the file"),
        ("max_epochs = 0", r"^max_epochs: .*; set MOESCOPE_MAX_EPOCHS or the file$"),  # which has no flag
        ("prot = 1", r"^prot: no such setting. Did you mean port\? There are .*port"),
        ('metrics_level = "all"', r"^metrics_level: .*'layer_rank'"),
        ("port = ", r"moescope\.toml: it is not valid TOML"),
    ],
)
def test_a_bad_value_says_what_to_do(tmp_path: Path, text: str, message: str) -> None:
    config = tmp_path / "moescope.toml"
    config.write_text(text)
    with pytest.raises(SettingsError, match=message):
        load_settings(config, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"the settings file .*none\.toml: it can't be read"):
        load_settings(tmp_path / "none.toml", {})


def test_open_ingest_needs_a_token_or_the_explicit_risk() -> None:
    with pytest.raises(SettingsError, match=r"set MOESCOPE_TOKEN.*--insecure"):
        load_settings(None, {"host": "0.0.0.0"})
    assert load_settings(None, {"host": "0.0.0.0", "token": "t"}).host == "0.0.0.0"
    assert load_settings(None, {"host": "0.0.0.0", "insecure": True}).insecure


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *((host, True) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost")),
        *((host, False) for host in ("0.0.0.0", "::", "10.0.0.1", "example.org")),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected


def test_a_store_is_a_folder_or_clickhouse() -> None:
    assert load_settings(None, {"store": "traces"}).store == Path("traces")
    for scheme in ("clickhouse", "clickhouses"):
        store = load_settings(None, {"store": f"{scheme}://user:hidden@host/db"}).store
        assert isinstance(store, ClickHouseUrl)
        assert store.get_secret_value() == f"{scheme}://user:hidden@host/db"
        assert "hidden" not in f"{store} {store!r}"
    with pytest.raises(SettingsError, match="store: a store at postgres:// is not known"):
        load_settings(None, {"store": "postgres://host"})


def test_without_a_home_folder_only_the_default_store_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("os.getuid", lambda: (1 << 31) - 7)  # as in a container with --user
    for words in ("^store: [^\n]*--store", "--no-store"):
        with pytest.raises(SettingsError, match=words):
            load_settings(None, {})
    assert load_settings(None, {"store": "traces"}).store == Path("traces")
    assert load_settings(None, {"store": "none"}).store is None
    assert load_settings(None, {"port": 0}).store is None
    monkeypatch.setenv("MOESCOPE_STORE", "/data")
    assert load_settings(None, {}).store == Path("/data")


def test_the_document_is_of_these_settings() -> None:
    how = "is out of date: python -m moescope.service.settings_document > docs/settings.md"
    assert (ROOT / "docs/settings.md").read_text() == markdown(), f"docs/settings.md {how}"
    assert all(field.description for field in Settings.model_fields.values())


def test_the_table_of_limits_has_their_defaults() -> None:
    text = (ROOT / "docs/security.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+)", text, re.MULTILINE)
    assert len(rows) >= 8
    for name, default in rows:
        assert float(default.replace(",", "")) == Settings.model_fields[name].default, name
