"""Draws the boards with Grafana's own components: ``python -m devkit.board_pictures.make``.

Two simulated deployments feed a real service for some minutes, and a real Prometheus scrapes it. Then the
Prometheus answers each panel's queries, and ``@grafana/ui`` in a headless Chromium draws the answers: PNGs in
docs/images. No Grafana server takes part, so annotations, and panels whose code is not in Grafana's library
of components (heatmaps), are not drawn.

Needs the packages prometheus, chromium and npm (with Node.js); npm gets about 400 packages, into a folder
outside of the repository.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread
from typing import Final

import httpx
import yaml
from PIL import Image
from playwright.sync_api import TimeoutError

from devkit.board_pictures.data import Answers, View, answered, without_data
from devkit.demo_tables import Service
from devkit.processes import ProcessGroup, free_port
from devkit.root_cause import explain
from tests.browser.chrome import Watched, chromium
from tests.dashboards.live import pin_baseline
from tests.prometheus import running_prometheus

HERE: Final = Path(__file__).parent
SOURCES: Final = ("package.json", "draw.jsx", "frames.js", "fields.js")
MOESCOPE: Final = str(Path(sys.executable).with_name("moescope"))
SCRAPE_S: Final = 5
CHAT, BATCH = "chat", "batch"
DEPLOYMENTS: Final = {
    CHAT: "--model moe-64 --ranks 8 --layers 12 --experts 64 --top-k 6 --skew 0.4 --hot 0.4 --hot-moves-s 75 "
    "--rank-imbalance 1.5 --rearrange-s 150 --lost-steps 0.02 --draft-share 0.3 --steps 10",
    BATCH: "--model moe-32 --ranks 4 --layers 6 --experts 32 --top-k 4 --decode-share 0.2 --steps 10 "
    "--fail 2@200-240",
}
BOARDS: Final = {
    "fleet": {},
    "model": {"server": CHAT},
    "layer": {"server": CHAT, "layer": "8"},
    "health": {},
}
COLOURS: Final = 128
"""Colours of a picture; flat areas and thin text need no more."""
FONTS: Final = {400: "Regular", 500: "Medium"}
"""Weights of Inter that Grafana's styles ask for; its packages don't have the font."""
# Grafana's components look for icons and fonts below this path.
PAGE: Final = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Boards</title>'
    '<link rel="icon" href="data:,">'
    '<link rel="stylesheet" href="draw.css"></head><body><div id="root"></div>'
    "<script>window.__grafana_public_path__ = '/public/'; window.MOESCOPE = BOARD;</script>"
    '<script src="draw.js"></script></body></html>'
)
ROWS: Final = """found => {
    const top = document.querySelector("#board").getBoundingClientRect().top;
    return found.map(row => Math.floor(row.getBoundingClientRect().top - top));
}"""
HIGHEST: Final = 4000
"""Pixels of a picture from top to bottom; a board that is higher becomes two."""
LARGEST: Final = 200_000
"""Bytes that a picture may have."""


def start_fleet(stack: ExitStack, logs: Path) -> str:
    """A service that two simulated deployments feed; its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    serve = [MOESCOPE, "serve", "--port", str(port), "--metrics-level", "layer_expert", "--no-store"]
    group = ProcessGroup(serve, logs / "serve.log", os.environ)
    stack.callback(group.stop)
    service = Service(url, CHAT)
    stack.callback(service.close)
    deadline = time.monotonic() + 30
    while not service.healthy():
        if group.exit_code() is not None or time.monotonic() > deadline:
            raise SystemExit(explain(group.log, "the service did not start"))
        time.sleep(0.2)
    for server, flags in DEPLOYMENTS.items():
        feed = [MOESCOPE, "simulate", "--url", url, "--server", server, *flags.split()]
        stack.callback(ProcessGroup(feed, logs / f"{server}.log", os.environ).stop)
    return url


def start_prometheus(stack: ExitStack, service: str, folder: Path) -> httpx.Client:
    """A Prometheus that scrapes the service, as job ``moescope`` of a cluster."""
    target = {"targets": [httpx.URL(service).netloc.decode()], "labels": {"cluster": "east"}}
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "scrape_timeout": f"{SCRAPE_S}s"},
        "scrape_configs": [{"job_name": "moescope", "static_configs": [target]}],
    }
    return stack.enter_context(running_prometheus(yaml.safe_dump(config), folder))


def bundle(packages: Path, site: Path) -> None:
    """Installs Grafana's components into one folder and bundles the drawing into another."""
    packages.mkdir(parents=True, exist_ok=True)
    for name in SOURCES:
        shutil.copy(HERE / name, packages / name)
    install = ["npm", "install", "--legacy-peer-deps", "--ignore-scripts", "--no-package-lock", "--no-audit"]
    subprocess.run([*install, "--no-fund"], cwd=packages, check=True)
    esbuild = [str(packages / "node_modules" / ".bin" / "esbuild"), "draw.jsx", "--bundle", "--minify"]
    loaders = [f"--loader:.{kind}=dataurl" for kind in ("svg", "ttf", "png")]
    defined = ['--define:process.env.NODE_ENV="production"', "--jsx=automatic", "--log-level=warning"]
    subprocess.run([*esbuild, *loaders, *defined, f"--outfile={site / 'draw.js'}"], cwd=packages, check=True)
    modules = packages.resolve() / "node_modules"
    (site / "public" / "fonts" / "inter").mkdir(parents=True)
    (site / "public" / "img").symlink_to(modules / "@grafana/ui/dist/public/img")
    for weight, name in FONTS.items():
        font = modules / f"@fontsource/inter/files/inter-latin-{weight}-normal.woff2"
        (site / "public" / "fonts" / "inter" / f"Inter-{name}.woff2").symlink_to(font)


@contextmanager
def serving(site: Path) -> Iterator[str]:
    """The folder over HTTP on loopback."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def collect(minutes: float, work: Path) -> dict[str, Answers]:
    """What the boards show after some minutes of live data; says which panels have none."""
    with ExitStack() as stack:
        url = start_fleet(stack, work)
        (work / "prometheus").mkdir()
        client = start_prometheus(stack, url, work / "prometheus")
        began = time.time()
        pin_baseline(url, CHAT)
        time.sleep(max(0.0, began + 60 * minutes - time.time()))
        end = time.time()
        views = {name: View(end - 60 * minutes, end, SCRAPE_S, values) for name, values in BOARDS.items()}
        return {name: answered(client, name, view) for name, view in views.items()}


def draw(answers: dict[str, Answers], site: Path, pictures: Path) -> None:
    """A picture of each board; complains of anything that the browser complains of."""
    pictures.mkdir(parents=True, exist_ok=True)
    with serving(site) as address, chromium() as browser:
        for name, found in answers.items():
            (site / "index.html").write_text(PAGE.replace("BOARD", json.dumps(found).replace("</", "<\\/")))
            watched = Watched(browser, viewport={"width": 1500, "height": 900})
            watched.page.goto(f"{address}/index.html")
            try:
                watched.page.wait_for_selector("#board[data-ready]")
            except TimeoutError:
                raise SystemExit(f"{name} was not drawn: {watched.complaints}") from None
            watched.page.wait_for_timeout(1000)
            shot = Image.open(BytesIO(watched.page.locator("#board").screenshot()))
            rows = watched.page.locator("#board > div > div:not([data-panel]) > h2").evaluate_all(ROWS)
            watched.close()
            for number, part in enumerate(parts_of(shot.convert("RGB"), rows)):
                path = pictures / f"board-{name}{f'-{number + 1}' if number else ''}.png"
                part.quantize(COLOURS, dither=Image.Dither.NONE).save(path, optimize=True)
                print(path, path.stat().st_size)
                if path.stat().st_size >= LARGEST:
                    raise SystemExit(f"{path} is too large")


def parts_of(shot: Image.Image, rows: list[int]) -> list[Image.Image]:
    """The picture, or two of a high one, which is cut above the row that begins nearest to its middle."""
    if shot.height <= HIGHEST:
        return [shot]
    cut = min(rows, key=lambda top: abs(top - shot.height / 2))
    return [shot.crop((0, 0, shot.width, cut)), shot.crop((0, cut, shot.width, shot.height))]


def main() -> None:
    """Start everything, wait, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=6, help="of live data (default: %(default)s)")
    parser.add_argument("--pictures", type=Path, default=Path("docs/images"), help="folder for the pictures")
    parser.add_argument("--packages", type=Path, help="folder that keeps npm's packages (default: none)")
    parser.add_argument("--answers", type=Path, help="file that keeps the data; if it is there, it is drawn")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="moescope-boards-") as temporary:
        site = Path(temporary) / "site"
        site.mkdir()
        bundle(options.packages or Path(temporary) / "packages", site)
        kept: Path | None = options.answers
        if kept is not None and kept.exists():
            answers = json.loads(kept.read_text())
        else:
            answers = collect(options.minutes, Path(temporary))
            if kept is not None:
                kept.write_text(json.dumps(answers))
        for name, found in answers.items():
            print(f"{name}: without data: {without_data(found) or 'none'}")
        draw(answers, site, options.pictures)


if __name__ == "__main__":
    main()
