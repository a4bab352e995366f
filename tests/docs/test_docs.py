"""The documents against the code: links, files, modules, metrics, routes, commands, variables, reasons.

Also their width: text wraps at 120 columns.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl

import pytest
import typer
import yaml

from moescope.capture.settings.environment import CaptureSettings
from moescope.service.api.app import create_app
from moescope.service.cli.commands import command_line
from moescope.service.client.settings import ClientSettings
from moescope.service.metrics.catalogue import CATALOGUE
from moescope.service.settings import OTHER_VARIABLES, Settings
from tests.service.metrics.families import FAMILY_OF

ROOT = Path(__file__).parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = {path: path.read_text() for path in DOCUMENTS}
# What tells of the past may name what is gone.
PRESENT = {path: text for path, text in TEXTS.items() if path.name != "CHANGELOG.md"}
ALL = "\n".join(PRESENT.values())


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_resolve(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"", TEXTS[path]):
        target, _, anchor = "".join(link).partition("#")
        if target.startswith(("http://", "https://")):
            continue
        found = path.parent / target if target else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found.read_text()), f"{target}#{anchor}"


def test_the_index_has_every_document() -> None:
    index = TEXTS[ROOT / "docs/README.md"]
    linked = {target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", index)}
    documents = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert not documents - linked


def test_the_readme_is_two_screens() -> None:
    text = TEXTS[ROOT / "README.md"]
    assert len(text.splitlines()) <= 110
    assert text.index("<picture>") < 600


def test_pictures_are_used_and_small() -> None:
    shown = set(re.findall(r"images/([\w.-]+)", ALL))
    found = {path.name: path.stat().st_size for path in (ROOT / "docs/images").iterdir()}
    assert set(found) <= shown
    assert not {name: size for name, size in found.items() if size >= 200_000}


def too_wide(text: str, columns: int = 120) -> list[str]:
    """Lines of a document that are too wide and could be broken, each with its number.

    Code, rows of tables, comments, and lines without a space to break at (a long link) may be wider.
    """
    found, in_code = [], False
    for number, line in enumerate(text.splitlines(), 1):
        in_code ^= line.lstrip().startswith("```")
        words = re.sub(r"\[[^\]]*\]\(\S*\)", "link", line).split()  # a link's text stays on its line
        breakable = len(words) > 1 + (words[0] in {"-", ">", "1."} if words else 0)
        if len(line) > columns and breakable and not in_code and not line.startswith(("|", "<!--")):
            found.append(f"{number}: {line}")
    return found


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_text_wraps(path: Path) -> None:
    assert not too_wide(TEXTS[path])


def test_what_is_too_wide() -> None:
    long, code = "word " * 25, "```\n" + "word " * 25 + "\n```"
    assert [line[:2] for line in too_wide(f"{code}\n{long}\n- {long}")] == ["4:", "5:"]
    assert not too_wide(f"| {long} |\n- [{long}](https://example.org/)\n{'x' * 130}\n{long[:119]}")


def test_files_and_modules_exist() -> None:
    folders = "capture|service|dashboards|devkit|tests|benchmarks|docs|deploy"
    named = set(re.findall(rf"`((?:{folders})/[\w./*-]*)`", ALL))
    assert len(named) > 30
    assert not {path for path in named if not list(ROOT.glob(path.rstrip("/")))}
    modules = set(re.findall(r"python3? -m ([\w.]*\w)", ALL))
    assert len(modules) > 10
    assert not {module for module in modules if importlib.util.find_spec(module) is None}


def test_metrics_exist() -> None:
    recorded = {
        rule["record"]
        for path in (ROOT / "dashboards/rules").glob("*.yml")
        for group in yaml.safe_load(path.read_text())["groups"]
        for rule in group["rules"]
        if "record" in rule
    }
    known = recorded | set(CATALOGUE) | set(FAMILY_OF)
    # What a request asks for its trace with, and what an answer tells of a worker.
    known |= {"moescope_trace", "moescope_version"}
    named = set(re.findall(r"\b(?:\w+:)?moescope_\w+(?::\w+)?(?!\w*\*)", ALL))
    assert len(named) > len(CATALOGUE)
    assert named <= known, named - known
    for beginning in re.findall(r"\b(moescope_\w*)\*", ALL):
        assert any(name.startswith(beginning.partition("*")[0]) for name in known), beginning


@pytest.fixture(scope="module")
def routes() -> dict[tuple[str, str], set[str]]:
    """The names of each route's parameters, by method and path."""
    paths = create_app(Settings()).openapi()["paths"]
    return {
        (method.upper(), path): {parameter["name"] for parameter in operation.get("parameters", ())}
        for path, operations in paths.items()
        for method, operation in operations.items()
    }


def asked() -> Iterator[tuple[str, str, str]]:
    """Method, path and query of every request that a document names."""
    # An example of a refusal asks what no route takes.
    text = "\n".join(part for path, part in PRESENT.items() if path.name != "answers.md")
    for method, rest in re.findall(r"\b(GET|POST|DELETE) (/[^`|)\s]*(?:`, `/[^`]*)*)", text):
        for target in rest.split("`, `"):
            path, _, query = target.partition("?")
            yield method, path.rstrip(".,:;"), query
    for target in re.findall(r"(?:localhost|127\.0\.0\.1):9890(/v1/[^'\"`\s]*)", ALL):
        path, _, query = target.partition("?")
        yield "GET", path, query


def test_routes_and_their_parameters_exist(routes: dict[tuple[str, str], set[str]]) -> None:
    patterns = {
        (method, re.compile(re.sub(r"{\w+}", r"[^/]+", path) + "$")): names
        for (method, path), names in routes.items()
    }
    pages = {"/", "/docs", "/openapi.json"}
    found = list(asked())
    assert len(found) > 40
    for method, path, query in found:
        fitting = [
            names for (verb, path_of), names in patterns.items() if verb == method and path_of.match(path)
        ]
        assert fitting or (method == "GET" and path in pages), f"{method} {path}"
        given = {name for name, _ in parse_qsl(query, keep_blank_values=True)}
        assert not given or any(given <= names for names in fitting), f"{method} {path}?{query}"


def test_the_table_of_routes_has_every_route(routes: dict[tuple[str, str], set[str]]) -> None:
    section = TEXTS[ROOT / "docs/http.md"].partition("\n## Routes\n")[2].partition("\n## ")[0]
    listed = {re.sub(r"{\w+}", "{}", path) for path in re.findall(r"[` ](/[\w/{}.]*)`", section)}
    assert {re.sub(r"{\w+}", "{}", path) for _, path in routes} <= listed


def test_the_table_of_filters_is_that_of_the_routes(routes: dict[tuple[str, str], set[str]]) -> None:
    section = TEXTS[ROOT / "docs/http.md"].partition("\n## Filters\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    assert len(rows) > 12
    for paths, *cells in rows:
        for path in re.findall(r"`(/[^`]*)`", paths):
            takes = routes["GET", path.replace("{id}", "{request_id}")]
            for name, cell in zip(("layer", "dp_rank", "phase", "start"), cells, strict=False):
                # Positions of a trace are no time.
                assert (name in takes) == (cell != "no" and "positions" not in cell), (path, name)


def test_the_page_document_has_every_view_of_the_menu() -> None:
    source = (ROOT / "service/page/js/views/index.js").read_text()
    menu = set(re.findall(r'title: "(\w+)", inMenu: true', source))
    section = TEXTS[ROOT / "docs/page.md"].partition("\n## Views\n")[2].partition("\n## ")[0]
    listed = set(re.findall(r"^- \*\*(\w+)\*\*:", section, re.MULTILINE))
    assert len(menu) > 5
    assert menu <= listed


def commands() -> dict[str, set[str]]:
    """The long flags of each command; those of groups are 'group command'."""

    def walk(group: typer.core.TyperGroup, before: str) -> Iterator[tuple[str, set[str]]]:
        for name, command in group.commands.items():
            if isinstance(command, typer.core.TyperGroup):
                yield from walk(command, f"{before}{name} ")
            else:
                flags = {
                    flag
                    for parameter in command.params
                    for flag in [*parameter.opts, *parameter.secondary_opts]
                }
                yield f"{before}{name}", flags | {"--help"}

    root = typer.main.get_command(command_line())
    assert isinstance(root, typer.core.TyperGroup)
    return dict(walk(root, ""))


def test_commands_and_their_flags_exist() -> None:
    known, used = commands(), set()
    blocks = re.findall(r"^```\w*\n(.*?)^```$", ALL, re.MULTILINE | re.DOTALL)
    lines = re.findall(
        r"`moescope ([^`]+)`", re.sub(r"^```.*?^```$", "", ALL, flags=re.MULTILINE | re.DOTALL)
    )
    lines += re.findall(r"(?:^|\s)moescope ([a-z][^#>|&\n]*)", "\n".join(blocks), re.MULTILINE)
    assert len(lines) > 40
    for line in lines:
        words = shlex.split(line)
        name = " ".join(words[:2]) if " ".join(words[:2]) in known else words[0]
        assert name in known, line
        flags = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert flags <= known[name], (line, flags - known[name])
        used.add(name)
    assert set(known) == used


def test_variables_exist() -> None:
    source = (ROOT / "capture/settings/environment.py").read_text()
    ours = set(re.findall(r"MOESCOPE_[A-Z_]+", source)) | {
        f"MOESCOPE_{name}" for name in ("TOKEN_FILE", "CA_FILE", "CERT_FILE", "KEY_FILE")
    }
    rows = re.findall(r"^\| (`MOESCOPE_[^|]*`) \| (.*?) \|", TEXTS[ROOT / "docs/capture.md"], re.MULTILINE)
    listed = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    assert set(listed) == ours
    defaults = CaptureSettings.from_environment({})
    shown = {name: default.strip("`") for name, default in listed.items()}
    assert shown["MOESCOPE_ENDPOINT"] == defaults.endpoint
    assert float(shown["MOESCOPE_INTERVAL"]) == defaults.interval
    assert float(shown["MOESCOPE_TRACE_RATE"]) == defaults.traces.rate
    assert int(shown["MOESCOPE_TRACE_MIB"]) << 20 == defaults.trace_bytes
    assert int(shown["MOESCOPE_KEPT_IDS_MIB"]) << 20 == defaults.kept_ids_bytes
    assert shown["MOESCOPE_ON_ERROR"] == defaults.on_error.value
    compose = set(re.findall(r"\$\{(MOESCOPE_\w+)", (ROOT / "docker-compose.yml").read_text()))
    client = {f"MOESCOPE_{name.upper()}" for name in ClientSettings.model_fields}
    known = ours | compose | client | {f"MOESCOPE_{name.upper()}" for name in Settings.model_fields}
    assert {f"MOESCOPE_{name.upper()}" for name in (*OTHER_VARIABLES, *Settings.model_fields)} == known
    named = set(re.findall(r"MOESCOPE_[A-Z0-9_]+\b", ALL))
    assert named <= known, named - known


def test_the_runbook_has_every_reason_of_a_refusal() -> None:
    section = TEXTS[ROOT / "docs/runbook.md"].partition("## MoescopeRefusedFrames")[2].partition("\n## ")[0]
    table = section.partition("| reason |")[2]
    listed = set(
        re.findall(
            r"`(\w+)`", " ".join(row.split("|")[1] for row in table.splitlines() if row.count("|") > 2)
        )
    )
    source = "\n".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    used = set(re.findall(r"(?:RefusedError|RefusedFrameError|_refused)\(\s*\"(\w+)\"", source))
    assert listed == used | {"unauthorized", "forbidden"}


def test_lines_of_the_workers_log_are_the_real_ones() -> None:
    section = TEXTS[ROOT / "docs/deploy.md"].partition("## When nothing shows")[2].partition("\n## ")[0]
    source = "\n".join(path.read_text() for path in (ROOT / "capture").rglob("*.py"))
    rows = re.findall(r"^\| `([^`]+)`", section, re.MULTILINE)
    later = section.partition("Later,")[2]
    quoted = [*rows, *re.findall(r"`([a-z' ;]+)`", later), "answered "]
    assert len(quoted) >= 7
    # The line's prefix may stand apart from the words that follow it.
    said = [words.removeprefix("moescope: ") for words in quoted]
    assert not [words for words in said if words not in source]
    assert "No producer has reported yet." in (ROOT / "service/cli/rank_views.py").read_text()
