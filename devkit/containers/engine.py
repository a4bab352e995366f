"""Buildah and Podman with a store of their own, so that nothing of it is left in the machine's."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_CONTAINERS: Final = """\
[containers]
default_ulimits = ["nofile=20000:20000", "nproc=20000:20000"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""
"""What runs where there is no systemd and limits can't be raised."""


class EngineError(RuntimeError):
    """A command failed; the message has its last lines."""


class Engine:
    """Runs buildah and podman.

    Args:
        folder: for images, containers and settings; removed by :meth:`close`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "containers.conf").write_text(_CONTAINERS)
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/graph"\nrunroot = "{folder}/run"\n'
        )
        self.environment = {
            **os.environ,
            "CONTAINERS_CONF": str(folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        }

    def call(self, *words: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        """A command, whatever becomes of it."""
        return subprocess.run(
            words, env=self.environment, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def podman(self, *words: str, timeout_s: float = 120) -> str:
        """What a command of podman prints.

        Raises:
            EngineError: it failed.
        """
        return self._succeed(("podman", *words), timeout_s)

    def build(
        self, context: Path, file: Path, tag: str, volumes: Sequence[str] = (), oci: bool = False
    ) -> None:
        """An image of a Dockerfile, in Docker's format or in that of OCI.

        Raises:
            EngineError: it can't be built.
        """
        mounts = [word for path in volumes for word in ("--volume", f"{path}:{path}:ro")]
        self._succeed(
            (
                *("buildah", "bud", "--isolation", "chroot", "--network", "host", *mounts),
                *("--format", "oci" if oci else "docker", "--file", str(file), "--tag", tag, str(context)),
            ),
            1800,
        )

    def has(self, image: str) -> bool:
        """Whether the image is here, or can be pulled."""
        if self.call("podman", "image", "exists", image).returncode == 0:
            return True
        return self.call("podman", "pull", "--quiet", image, timeout_s=600).returncode == 0

    def close(self) -> None:
        """End all containers and remove all that was made."""
        self.call("podman", "rm", "--all", "--force", "--time", "0")
        self.call("podman", "volume", "prune", "--force")
        self.call("podman", "network", "prune", "--force")
        self.call("podman", "system", "reset", "--force", timeout_s=300)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _succeed(self, words: Sequence[str], timeout_s: float) -> str:
        done = self.call(*words, timeout_s=timeout_s)
        if done.returncode:
            said = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
            raise EngineError(f"{' '.join(words[:3])} ... failed:\n{said}")
        return done.stdout.strip()
