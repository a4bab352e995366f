"""`make bare` refuses in one line what it can't do. Its work takes half an hour: no test runs it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "devkit" / "bare.sh"


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *arguments], check=False, capture_output=True, text=True)


def test_help_lists_the_flags() -> None:
    done = bare("--help")
    assert done.returncode == 0
    for flag in ("--python", "--root", "--run", "--keep", "--again"):
        assert f"\n  {flag} " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--python", "3.12"], "no release of Debian has Python 3.12: 3.11 (Debian 12) or 3.13 (Debian 13)"),
        (["--what"], "unknown: --what (see --help)"),
        (["--root"], "--root needs a value"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], said: str) -> None:
    done = bare(*arguments)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"[bare] error: {said}\n")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").touch()
    said = f"{tmp_path} isn't empty: remove it, or use it with --again"
    if os.getuid() != 0:
        said = "needs root: debootstrap and chroot do"
    done = bare("--root", str(tmp_path))
    assert (done.returncode, done.stderr) == (1, f"[bare] error: {said}\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]
