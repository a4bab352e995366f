"""The Helm chart, rendered by Helm itself (its Go library, in a package of PyPI): ``python -m devkit.chart``.

Without arguments it writes the manifests in ``deploy/kubernetes`` that are for people without Helm. ``check``
lints the chart and says which of these manifests are out of date. ``render CHART FILE...`` prints what a
chart makes of each file of values, as JSON: texts by template, or the error. That is a process of its own
because Go's threads would stay in the caller's, and Python warns when a process with threads forks.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import helm_python

ROOT: Final = Path(__file__).resolve().parents[1]
CHART: Final = ROOT / "deploy" / "helm" / "moescope"
FOLDER: Final = ROOT / "deploy" / "kubernetes"
NAMESPACE: Final = "serving"
_WARNING: Final = 2  # Helm's severities
_MONITORED: Final = {"prometheus": {"monitor": {"enabled": True}}}
_SIDECAR: Final = {
    "mode": "sidecar",
    "fleet": "small",
    "vllm": {"pool": "vllm"},
    "example": {"enabled": True},
}
PLAIN: Final[Mapping[str, tuple[str, Mapping[str, Any], Sequence[str]]]] = {
    "moescope.yaml": (
        "One moescope for all vLLM servers of a namespace.",
        {},
        ("tokens", "service", "workload"),
    ),
    "servicemonitor.yaml": ("For the Prometheus operator, with moescope.yaml.", _MONITORED, ("monitor",)),
    "vllm-sidecar.yaml": ("An example of moescope beside vLLM in one pod.", _SIDECAR, ("tokens", "example")),
    "podmonitor.yaml": (
        "For the Prometheus operator, with vllm-sidecar.yaml.",
        {**_SIDECAR, **_MONITORED},
        ("monitor",),
    ),
    "networkpolicy.yaml": (
        "Who may reach moescope.yaml: pods of its namespace, and all of the namespace monitoring.",
        {"networkPolicy": {"enabled": True}},
        ("networkpolicy",),
    ),
    "alertmanagerconfig.yaml": (
        "Routes, grouping and inhibition for the Prometheus operator; put your receivers in.",
        {"alertmanager": {"enabled": True}},
        ("alertmanager",),
    ),
}
"""File name to its first line, the values, and the templates that it is made of."""
_FIRST: Final = """\
# Make the Secret first, in the same namespace:
#   kubectl create secret generic moescope --from-literal=ingest=$(openssl rand -hex 16) \
--from-literal=read=$(openssl rand -hex 16)
"""
_OF_A_RELEASE: Final = re.compile(
    r"^ *(app\.kubernetes\.io/(instance|managed-by|version)|helm\.sh/chart): .*\n", re.MULTILINE
)


def rendered(values: Mapping[str, Any], chart: Path = CHART) -> dict[str, str]:
    """What Helm makes of the values for a release that is called moescope: template to text.

    Raises:
        helm_python.HelmError: the values don't fit the chart's schema, or a template fails.
    """
    with helm_python.Chart.load(chart) as loaded:
        made = loaded.render(dict(values), name="moescope", namespace=NAMESPACE)
    return {Path(name).stem: text for name, text in made.items()}


def manifests() -> Iterator[tuple[str, str]]:
    """Name and text of each manifest for people without Helm."""
    for name, (title, values, templates) in PLAIN.items():
        made = rendered(values)
        texts = "---\n".join(_without_helm(made[template]) for template in templates)
        yield name, f"{_head(name, title)}{texts}"


def _head(name: str, title: str) -> str:
    first = _FIRST if name in ("moescope.yaml", "vllm-sidecar.yaml") else ""
    return f"# {title}\n# Made of the chart in deploy/helm by `python -m devkit.chart`.\n{first}"


def _without_helm(text: str) -> str:
    """Without the labels of a release, and without the namespace in addresses."""
    text = _OF_A_RELEASE.sub("", text)
    return f"{text.replace(f'.{NAMESPACE}.svc', '').strip()}\n"


def main(words: Sequence[str]) -> None:
    """Write the manifests, or print what files of values give."""
    match words:
        case ["render", chart, *files]:
            print(json.dumps({file: _made_of(Path(chart), Path(file)) for file in files}))
            return
        case ["check"]:
            sys.exit("; ".join([*_stale(), *_linted()]) or 0)
    for name, text in manifests():
        (FOLDER / name).write_text(text)


def _stale() -> Iterator[str]:
    names = [name for name, text in manifests() if (FOLDER / name).read_text() != text]
    if names:
        yield f"run: python -m devkit.chart (differing: {', '.join(names)})"


def _linted() -> Iterator[str]:
    """What Helm's linter warns of or refuses."""
    report = helm_python.lint(CHART, strict=True)
    yield from report["errors"]
    messages = [item for item in report["messages"] if item["severity"] >= _WARNING]
    yield from (f"{item['path']}: {item['error']}" for item in messages)


def _made_of(chart: Path, file: Path) -> dict[str, Any]:
    try:
        return {"templates": rendered(helm_python.values_from_yaml(file.read_text()), chart)}
    except helm_python.HelmError as error:
        return {"error": str(error)}


if __name__ == "__main__":
    main(sys.argv[1:])
