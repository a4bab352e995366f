"""What is missing of the system is named before anything starts: the library and Debian's package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from devkit import libraries
from devkit.libraries import MissingLibraryError, debian_package, missing_libraries, require
from devkit.vllm_server import VllmOptions, VllmServer, VllmStartError
from tests.broken_library import make_broken_library

ROOT = Path(__file__).parents[2]
NOBODY = 65534


def test_a_library_that_the_loader_does_not_find_is_named(tmp_path: Path) -> None:
    broken = make_broken_library(tmp_path, name="libnuma.so.1", lacks="libmoescope_gone.so.7")
    missing = missing_libraries("the test", [broken])
    assert [str(one) for one in missing] == [
        "the test needs libmoescope_gone.so.7, which is not installed: Debian's package libmoescope-gone7"
    ]
    with pytest.raises(MissingLibraryError, match=r"^the test needs libmoescope_gone\.so\.7, [^\n]*gone7$"):
        require(missing)


def test_what_another_of_the_files_brings_is_not_missing(tmp_path: Path) -> None:
    broken = make_broken_library(tmp_path, name="libuser.so.1", lacks="libbrought.so.1")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    brought = make_broken_library(elsewhere, name="libbrought.so.1", lacks="libgone.so.1")
    assert [one.what for one in missing_libraries("the test", [broken])] == ["libbrought.so.1"]
    assert [one.what for one in missing_libraries("the test", [broken, brought])] == ["libgone.so.1"]


def test_programs_are_asked_too_and_have_what_they_need_here(tmp_path: Path) -> None:
    assert missing_libraries("Python", [Path(os.path.realpath(sys.executable))]) == []
    with pytest.raises(FileNotFoundError, match="nothing is not installed"):
        missing_libraries("nothing", [tmp_path / "nothing"])


def test_this_environment_lacks_nothing() -> None:
    assert [check() for check in libraries.CHECKS.values()] == [[], [], []]


def test_headers_of_debians_python_are_of_its_own_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", {"include": "/usr/include/python3.99"}.get)
    (missing,) = libraries.missing_compiler()
    assert (missing.what, missing.package) == ("/usr/include/python3.99/Python.h", "libpython3.99-dev")


def test_no_package_has_the_headers_of_another_python(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = tmp_path / "python3.11"
    monkeypatch.setattr(sysconfig, "get_path", {"include": str(headers)}.get)
    assert libraries.main(["compiler"]) == 0
    out, said = capsys.readouterr()
    assert out == ""
    assert said == (
        f"[libraries] torch's compiler needs {headers}/Python.h, which is not installed: "
        "install this Python again with its headers, or take another (PYTHON=...)\n"
    )


@pytest.mark.parametrize(
    ("library", "package"),
    [
        ("libnuma.so.1", "libnuma1"),
        ("libatomic.so.1", "libatomic1"),
        ("libstdc++.so.6", "libstdc++6"),
        ("libgcc_s.so.1", "libgcc-s1"),
        ("libx264.so.164", "libx264-164"),
        ("libfoo.so", "libfoo"),
    ],
)
def test_debian_names_a_library_s_package_after_it(library: str, package: str) -> None:
    assert debian_package(library) == package


def test_vllm_is_not_started_without_a_library_that_it_needs(tmp_path: Path) -> None:
    make_broken_library(tmp_path, name="libnuma.so.1", lacks="libgone.so.1")
    options = VllmOptions(model=tmp_path, env={"LD_LIBRARY_PATH": str(tmp_path)})
    with pytest.raises(VllmStartError, match=r"^vLLM needs libgone\.so\.1, [^\n]* package libgone1$"):
        VllmServer(options, log=tmp_path / "log").start()
    assert not (tmp_path / "log").exists()


def test_the_command_prints_packages_and_says_what_for() -> None:
    lacking = subprocess.run(
        [sys.executable, "-m", "devkit.libraries", "vllm", "compiler"],
        env=os.environ | {"CXX": "moescope-no-such-compiler"},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert lacking.stdout == "g++\n"
    assert lacking.stderr.count("\n") == 1
    assert "moescope-no-such-compiler" in lacking.stderr


def set_up(*packages: str, commands: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Run setup-debian.sh with these commands and no sudo; as nobody if the tests are run by root."""
    with TemporaryDirectory() as path, (ROOT / "devkit" / "setup-debian.sh").open() as script:
        Path(path).chmod(0o755)
        for program in ("id", "dpkg-query", "apt-get"):
            Path(path, program).symlink_to(shutil.which(program) or "missing")
        for command in commands:
            Path(path, command).symlink_to("/bin/true")
        return subprocess.run(
            ["/bin/bash", "-s", "--", *packages],
            stdin=script,
            env={"PATH": path},
            user=NOBODY if os.getuid() == 0 else None,
            cwd="/",
            check=False,
            capture_output=True,
            text=True,
        )


def test_without_root_and_sudo_one_line_says_what_to_install() -> None:
    asked = set_up("dpkg", "moescope-no-such-package", "moescope-nor-this")
    assert asked.returncode == 1
    assert asked.stdout == ""
    assert asked.stderr == (
        "[debian] error: neither root nor sudo without a password; "
        "install these by hand: moescope-no-such-package moescope-nor-this\n"
    )


def test_a_command_that_no_package_brought_is_not_installed_again() -> None:
    """Such as Ubuntu's chromium, which is a snap."""
    asked = set_up("dpkg", "moescope-a-snap", commands=["moescope-a-snap"])
    assert (asked.returncode, asked.stdout, asked.stderr) == (0, "", "")
