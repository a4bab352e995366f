"""Images that stand in for those of registries that can't be reached: a Debian made with debootstrap.

The base of Python then has Debian's Python, and vLLM's has no vLLM.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

from devkit.containers.engine import Engine, EngineError

_INCLUDED: Final = "python3,python3-pip,python-is-python3,ca-certificates"
_SETTINGS: Final = ("/etc/pip.conf", "/root/.config/pip/pip.conf", "/etc/ssl/certs")
PROMETHEUS: Final = """\
FROM {base}
RUN apt-get update -q && apt-get install -qy --no-install-recommends prometheus wget \\
    && install -d -o 65534 -g 65534 /prometheus
VOLUME /prometheus
USER 65534:65534
ENTRYPOINT ["/usr/bin/prometheus"]
"""


def make_base(engine: Engine, tags: list[str]) -> None:
    """Make the Debian, and give it these names.

    Raises:
        EngineError: debootstrap failed.
    """
    root, log = engine.folder / "root", engine.folder / "debootstrap.log"
    ask = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Origin: Debian"]
    mirror = subprocess.run(ask, capture_output=True, text=True, check=False).stdout.split()[:1]
    with log.open("wb") as output:
        command = [
            "debootstrap",
            "--variant=minbase",
            f"--include={_INCLUDED}",
            "bookworm",
            str(root),
            *mirror,
        ]
        done = subprocess.run(command, stdout=output, stderr=output, check=False)
    if done.returncode:
        raise EngineError(f"debootstrap failed:\n{log.read_text()[-2000:]}")
    for path in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        path.unlink()  # pip may install, as in Python's own image
    archive = engine.folder / "root.tar"
    subprocess.run(["tar", "-C", str(root), "-cf", str(archive), "."], check=True)
    shutil.rmtree(root)
    for tag in tags:
        engine.podman("import", str(archive), tag, timeout_s=600)
    archive.unlink()


def package_settings() -> list[str]:
    """Files and folders by which pip finds packages here: its settings, and what these name."""
    found = {path for path in _SETTINGS if Path(path).exists()}
    texts = [Path(path).read_text() for path in found if Path(path).is_file()]
    texts += [value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_CERT"))]
    for path in re.findall(r"(?:file://)?(/[^\s\"',;:]+)", "\n".join(texts)):
        folder = re.sub(r"/simple/*$", "", path)  # an index in a folder, whose files lie beside it
        found |= {folder} if Path(folder).exists() else set()
    return sorted(found)
