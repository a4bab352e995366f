"""Settings: defaults, values, and errors that say what to do."""

import os
from pathlib import Path

import pytest

from moescope.capture.settings.environment import CaptureSettings, OnError, SettingsError


def test_defaults() -> None:
    settings = CaptureSettings.from_environment({})
    assert settings.endpoint == "http://127.0.0.1:9890"
    assert settings.interval == 1.0
    assert settings.token is None
    assert settings.on_error is OnError.RAISE_AT_START
    assert settings.kept_ids_bytes == 32 << 20
    assert (settings.server, settings.pool, settings.role) == ("", "", "")


def test_values() -> None:
    settings = CaptureSettings.from_environment(
        {
            "MOESCOPE_ENDPOINT": "https://scope.internal:9890/base/",
            "MOESCOPE_INTERVAL": "0.25",
            "MOESCOPE_TOKEN": "s3cret",
            "MOESCOPE_ON_ERROR": "Disable",
            "MOESCOPE_SERVER": "prefill-a",
            "MOESCOPE_POOL": " deepseek ",
            "MOESCOPE_ROLE": "Decode",
            "MOESCOPE_KEPT_IDS_MIB": "0",
            "MOESCOPE_PORT": "9890",
        }
    )
    assert settings == CaptureSettings(
        "https://scope.internal:9890/base",
        0.25,
        "s3cret",
        OnError.DISABLE,
        "prefill-a",
        kept_ids_bytes=0,
        pool="deepseek",
        role="decode",
    )
    assert "s3cret" not in repr(settings)


def test_fast_kernels_are_left_alone_where_that_is_asked_for() -> None:
    assert not CaptureSettings.from_environment({}).leave_fast_kernels
    assert CaptureSettings.from_environment({"MOESCOPE_LEAVE_FAST_KERNELS": "1"}).leave_fast_kernels


def test_the_token_can_come_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("from-file\n")
    assert CaptureSettings.from_environment({"MOESCOPE_TOKEN_FILE": str(path)}).token == "from-file"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("MOESCOPE_ENDPOINT", "localhost:9890", "no URL such as"),
        ("MOESCOPE_ENDPOINT", "http://host:port", "no URL such as"),
        ("MOESCOPE_ENDPOINT", "http://me:s3cret@host", "no user or password"),
        ("MOESCOPE_ENDPOINT", "http://host/path?token=a", "no query"),
        ("MOESCOPE_ENDPOINT", "http://host/?", "no query"),
        ("MOESCOPE_ENDPOINT", "http://host#a", "fragment"),
        ("MOESCOPE_ENDPOINT", "http://host/a b", "no URL such as"),
        ("MOESCOPE_ENDPOINT", "http://h\u00f6st", "no URL such as"),
        ("MOESCOPE_ENDPOINT", "http://host/\x1b[31m", "no URL such as"),
        ("MOESCOPE_INTERVAL", "soon", "from 0.05 to 3600"),
        ("MOESCOPE_INTERVAL", "0", "from 0.05 to 3600"),
        ("MOESCOPE_INTERVAL", "nan", "from 0.05 to 3600"),
        ("MOESCOPE_ON_ERROR", "ignore", "none of raise-at-start, raise, disable"),
        ("MOESCOPE_TRACE_MIB", "0", "no number of MiB from 1 to"),
        ("MOESCOPE_KEPT_IDS_MIB", "-1", "no number of MiB from 0 to"),
        ("MOESCOPE_KEPT_IDS_MIB", "32M", "no number of MiB from 0 to"),
        ("MOESCOPE_TOKEN", "two words", "printable ASCII"),
        ("MOESCOPE_TOKEN_FILE", "/does/not/exist", "can't be read"),
        ("MOESCOPE_SERVER", "x" * 257, "at most 256"),
        ("MOESCOPE_POOL", "x" * 257, "at most 256"),
        ("MOESCOPE_SERVER", os.fsdecode(b"m\xfcnchen"), "MOESCOPE_SERVER: it is not UTF-8"),
        ("MOESCOPE_POOL", os.fsdecode(b"\xff"), "MOESCOPE_POOL: it is not UTF-8"),
        ("MOESCOPE_ROLE", "kv_both", "none of prefill, decode"),
        ("MOESCOPE_LEAVE_FAST_KERNELS", "yes", "neither 0 nor 1"),
    ],
)
def test_errors_name_the_variable_and_what_it_takes(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        CaptureSettings.from_environment({name: value})
    assert str(caught.value).startswith(name)
    assert "s3cret" not in str(caught.value)


def test_one_bad_value_hides_no_other() -> None:
    settings, wrong = CaptureSettings.read(
        {
            "MOESCOPE": "yes",
            "MOESCOPE_ENDPOINT": "https://scope:9890",
            "MOESCOPE_INTERVAL": "soon",
            "MOESCOPE_SERVER": "prod",
            "MOESCOPE_TOKEN": "s3cret",
            "MOESCOPE_TRACE_RATE": "2",
            "MOESCOPE_TRACE_OPT_IN": "maybe",
        }
    )
    assert (settings.endpoint, settings.server, settings.token) == ("https://scope:9890", "prod", "s3cret")
    assert (settings.interval, settings.traces.any) == (1.0, False)
    named = [message.partition(":")[0] for message in wrong]
    assert named == ["MOESCOPE", "MOESCOPE_INTERVAL", "MOESCOPE_TRACE_RATE", "MOESCOPE_TRACE_OPT_IN"]
    with pytest.raises(SettingsError, match=r"INTERVAL.*; MOESCOPE_TRACE_RATE.*; MOESCOPE_TRACE_OPT_IN"):
        CaptureSettings.from_environment(
            {"MOESCOPE_INTERVAL": "x", "MOESCOPE_TRACE_RATE": "x", "MOESCOPE_TRACE_OPT_IN": "x"}
        )


def test_without_a_usable_endpoint_no_token_goes_to_the_default_one(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    for variables in ({"MOESCOPE_TOKEN": "s3cret"}, {"MOESCOPE_TOKEN_FILE": str(token)}):
        settings, wrong = CaptureSettings.read({"MOESCOPE_ENDPOINT": "scope:9890", **variables})
        assert (settings.endpoint, settings.token) == ("http://127.0.0.1:9890", None)
        assert settings.access.token_now() is None
        assert len(wrong) == 1


def test_a_token_file_that_is_no_text_is_a_bad_setting(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"\xff\xfe")
    _, wrong = CaptureSettings.read({"MOESCOPE_TOKEN_FILE": str(path)})
    assert "can't be read: it is no text" in wrong[0]
