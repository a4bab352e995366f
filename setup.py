"""Makes both archives reproducible; everything else about the build is in pyproject.toml.

With SOURCE_DATE_EPOCH set, two builds of one commit are the same files, byte for byte, wherever they were
made: setuptools dates the members of a wheel by it, and here the members of an sdist too. Modes of files are
those of a usual checkout, whatever the umask.
"""

import gzip
import os
import tarfile
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

os.umask(0o022)  # for what setuptools itself writes


def usual_modes(folder: str) -> None:
    """Let files have mode 0644."""
    for path in Path(folder).rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


class UsualModes(build_py):
    """Copies the packages' files with mode 0644."""

    def run(self) -> None:
        """Copy, then set the modes."""
        super().run()
        if not self.editable_mode:
            usual_modes(self.build_lib)


class UsualModesOfMetadata(bdist_wheel):
    """Packs the metadata with mode 0644."""

    def egg2dist(self, egginfo_path: str, distinfo_path: str) -> None:
        """Copy, then set the modes."""
        super().egg2dist(egginfo_path, distinfo_path)
        usual_modes(distinfo_path)


class DatedSdist(sdist):
    """Writes the archive's members in their order, dated by SOURCE_DATE_EPOCH where that is set."""

    def make_archive(self, base_name, format, root_dir=None, base_dir=None, owner=None, group=None):
        """Write ``base_name``.tar.gz of the folder ``base_dir``; its path."""
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        if epoch is None or format != "gztar":
            return super().make_archive(base_name, format, root_dir, base_dir, owner, group)

        def usual(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.mtime, member.uid, member.gid, member.uname, member.gname = int(epoch), 0, 0, "", ""
            member.mode = 0o755 if member.isdir() else 0o644
            return member

        path = f"{base_name}.tar.gz"
        with (
            gzip.GzipFile(path, "wb", mtime=int(epoch)) as packed,
            tarfile.open(fileobj=packed, mode="w") as archive,
        ):
            for found in [Path(base_dir), *sorted(Path(base_dir).rglob("*"))]:
                archive.add(found, recursive=False, filter=usual)
        return path


setup(cmdclass={"build_py": UsualModes, "bdist_wheel": UsualModesOfMetadata, "sdist": DatedSdist})
