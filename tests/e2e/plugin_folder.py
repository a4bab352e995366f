"""A folder with the plugin, and an environment as that of an image of vLLM: it has nothing of moescope."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
SOURCES: Final = ("capture", "client", "service", "dashboards", "pyproject.toml", "README.md", "LICENSE")
"""What the wheel is made of."""


def install_into(folder: Path, work: Path) -> None:
    """``pip install --no-deps --target``, by uv, of a copy of the sources; no index is asked."""
    copy = work / "sources"
    copy.mkdir()
    for name in SOURCES:
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, copy / name)
    uv = shutil.which("uv") or str(ROOT / ".kit" / "uv")
    command = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--no-build-isolation"]
    subprocess.run(
        [*command, "--python", sys.executable, "--target", str(folder), str(copy)], check=True, timeout=300
    )


def without_moescope(folder: Path) -> Path:
    """The Python of an environment made of links to what this one has, but for moescope."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    packages = subprocess.check_output(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], text=True
    )
    ours = ("moescope-", "__editable__.moescope-", "__editable___moescope_0")
    for path in Path(sysconfig.get_path("purelib")).iterdir():
        if not path.name.startswith(ours):
            (Path(packages.strip()) / path.name).symlink_to(path)
    script = Path(sys.executable).with_name("vllm").read_text().splitlines(keepends=True)
    assert script[0].startswith("#!")
    made = python.with_name("vllm")
    made.write_text("".join([f"#!{python}\n", *script[1:]]))
    made.chmod(0o755)
    return python
