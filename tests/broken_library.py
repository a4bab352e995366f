"""A real shared library that can't be loaded, because one that it needs is gone."""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_broken_library(folder: Path, *, name: str, lacks: str) -> Path:
    """Compile the library `name` in this folder, and remove the library `lacks` that it was linked with."""
    (folder / "used.cpp").write_text("int used() { return 1; }\n")
    (folder / "user.cpp").write_text("int used(); int user() { return used(); }\n")
    compile_shared = ["g++", "-shared", "-fPIC"]
    for library, source, linked in ((lacks, "used.cpp", []), (name, "user.cpp", ["-L.", f"-l:{lacks}"])):
        command = [*compile_shared, "-o", library, f"-Wl,-soname,{library}", source, *linked]
        subprocess.run(command, cwd=folder, check=True)
    (folder / lacks).unlink()
    return folder / name
