"""Settings: defaults, values, and errors that say what to do."""

from pathlib import Path

import pytest

from moescope.capture.settings.environment import CaptureSettings, OnError, SettingsError


def test_defaults() -> None:
    settings = CaptureSettings.from_environment({})
    assert settings.endpoint == "http://127.0.0.1:9890"
    assert settings.interval == 1.0
    assert settings.token is None
    assert settings.on_error is OnError.RAISE
    assert settings.kept_ids_bytes == 32 << 20
    assert settings.server


def test_values() -> None:
    settings = CaptureSettings.from_environment(
        {
            "MOESCOPE_ENDPOINT": "https://scope.internal:9890/base/",
            "MOESCOPE_INTERVAL": "0.25",
            "MOESCOPE_TOKEN": "s3cret",
            "MOESCOPE_ON_ERROR": "Disable",
            "MOESCOPE_SERVER": "prefill-a",
            "MOESCOPE_KEPT_IDS_MIB": "0",
            "MOESCOPE_PORT": "9890",
        }
    )
    assert settings == CaptureSettings(
        "https://scope.internal:9890/base", 0.25, "s3cret", OnError.DISABLE, "prefill-a", kept_ids_bytes=0
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
        ("MOESCOPE_INTERVAL", "soon", "from 0.05 to 3600"),
        ("MOESCOPE_INTERVAL", "0", "from 0.05 to 3600"),
        ("MOESCOPE_INTERVAL", "nan", "from 0.05 to 3600"),
        ("MOESCOPE_ON_ERROR", "ignore", "neither 'raise' nor 'disable'"),
        ("MOESCOPE_TRACE_MIB", "0", "no number of MiB from 1 to"),
        ("MOESCOPE_KEPT_IDS_MIB", "-1", "no number of MiB from 0 to"),
        ("MOESCOPE_KEPT_IDS_MIB", "32M", "no number of MiB from 0 to"),
        ("MOESCOPE_TOKEN", "two words", "printable ASCII"),
        ("MOESCOPE_TOKEN_FILE", "/does/not/exist", "can't be read"),
        ("MOESCOPE_SERVER", "x" * 257, "at most 256"),
        ("MOESCOPE_LEAVE_FAST_KERNELS", "yes", "neither 0 nor 1"),
    ],
)
def test_errors_name_the_variable_and_what_it_takes(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        CaptureSettings.from_environment({name: value})
    assert str(caught.value).startswith(name)
    assert "s3cret" not in str(caught.value)
