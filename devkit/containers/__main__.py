"""Builds and runs the images: ``make containers`` (``ARGS=--help``).

It builds the Dockerfile (in Docker's format and in OCI's) and Dockerfile.vllm with buildah, runs the service
with podman as it should be run, and docker-compose.yml with podman-compose. Images that registries have are
pulled; where they can't be reached, a Debian made with debootstrap stands in. It needs root. All of it is in
one folder, which is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from devkit.containers.composed import composed, install_compose
from devkit.containers.engine import Engine, EngineError
from devkit.containers.service import IMAGE, VLLM, Result, formats, plugin, service
from devkit.containers.stand_in import PROMETHEUS, make_base, package_settings

ROOT: Final = Path(__file__).resolve().parents[2]
_OCI: Final = "moescope-oci:0.1.0"


def bases() -> dict[str, str]:
    """The images that are built upon or run: those of Python, vLLM and Prometheus."""
    texts = {
        name: (ROOT / name).read_text() for name in ("Dockerfile", "Dockerfile.vllm", "docker-compose.yml")
    }
    python = re.search(r"^FROM (\S+)", texts["Dockerfile"], re.MULTILINE)
    vllm = re.search(r"^FROM (\S+)", texts["Dockerfile.vllm"], re.MULTILINE)
    prometheus = re.search(r"image: (prom/prometheus:\S+)", texts["docker-compose.yml"])
    assert python and vllm and prometheus  # noqa: PT018 the files have them
    return {
        "python": f"docker.io/library/{python[1]}",
        "vllm": f"docker.io/{vllm[1]}",
        "prometheus": f"docker.io/{prometheus[1]}",
    }


def built(engine: Engine, pull: bool) -> Iterator[Result]:
    """Build all images."""
    wanted, settings = bases(), package_settings()
    lacking = [name for name, image in wanted.items() if not (pull and engine.has(image))]
    if lacking:
        begin = time.monotonic()
        make_base(engine, [wanted[name] for name in lacking if name != "prometheus"] + ["localhost/debian"])
        took = time.monotonic() - begin
        yield "stand-in", True, f"a Debian for {', '.join(lacking)}, {took:.0f} s"
    if "prometheus" in lacking:
        context = engine.folder / "prometheus"
        context.mkdir()
        (context / "Dockerfile").write_text(PROMETHEUS.format(base="localhost/debian"))
        engine.build(context, context / "Dockerfile", wanted["prometheus"])
    for name, file, tag, oci in (
        ("the service's image", "Dockerfile", IMAGE, False),
        ("the same in OCI's format", "Dockerfile", _OCI, True),
        ("vLLM's image with the plugin", "Dockerfile.vllm", VLLM, False),
    ):
        begin = time.monotonic()
        engine.build(ROOT, ROOT / file, tag, settings, oci)
        size = int(engine.podman("inspect", "--format", "{{.Size}}", tag)) >> 20
        yield name, True, f"built in {time.monotonic() - begin:.0f} s, {size} MiB"
    engine.podman("tag", wanted["vllm"], "plain-vllm")


def everything(engine: Engine, pull: bool) -> Iterator[Result]:
    """Build, run, compose."""
    yield from built(engine, pull)
    yield from service(engine)
    yield from formats(engine, _OCI)
    yield from plugin(engine)
    uv = shutil.which("uv") or str(ROOT / ".kit" / "uv")
    yield from composed(engine, install_compose(engine.folder / "compose", uv))


def main(words: Sequence[str] | None = None) -> int:
    """Print what was tried, and how it went; 0 if all is well."""
    parser = argparse.ArgumentParser(
        prog="make containers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--no-pull", action="store_true", help="stand-ins, without asking a registry")
    parser.add_argument("--keep", action="store_true", help="keep the folder with images, for a look")
    chosen = parser.parse_args(words)
    if os.geteuid() != 0:
        print("[containers] error: needs root, for debootstrap and runc", file=sys.stderr)
        return 2
    begin = time.monotonic()
    engine = Engine(Path(tempfile.mkdtemp(prefix="moescope-containers-")))
    failed = 0
    try:
        for name, good, note in everything(engine, not chosen.no_pull):
            failed += not good
            print(
                f"[containers] {'ok    ' if good else 'FAILED'} {name}{f': {note}' if note else ''}",
                flush=True,
            )
    except (EngineError, TimeoutError) as error:
        failed += 1
        print(f"[containers] FAILED {error}", file=sys.stderr)
    finally:
        if chosen.keep:
            print(f"[containers] kept: {engine.folder}")
        else:
            engine.close()
    print(
        f"[containers] {'green' if not failed else f'{failed} failed'} after {time.monotonic() - begin:.0f} s"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
