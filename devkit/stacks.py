"""The lines of docs/stacks.md in other projects' own examples: ``python -m devkit.stacks FOLDER``.

FOLDER has clones: ``lws``, ``kserve``, ``kuberay`` and ``production-stack``. Each block of the document is
merged into the project's example and checked by the project's own resource definition, or rendered by its own
chart. It prints what was checked; the exit code is 1 if something doesn't fit.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]
import yaml  # type: ignore[import-untyped]

from devkit.crd import complaints, validator

ROOT: Final = Path(__file__).resolve().parents[1]
KUBERNETES: Final = "1.33"
DOCUMENT: Final = ROOT / "docs" / "stacks.md"
_LWS: Final = "lws/docs/examples/vllm/GPU/lws.yaml"
_SAMPLES: Final = "kserve/docs/samples/llmisvc"
_PD: Final = f"{_SAMPLES}/single-node-gpu/llm-inference-service-pd-qwen2-7b-gpu.yaml"
_EP: Final = (
    f"{_SAMPLES}/dp-ep/deepseek-r1-gpu-rdma-roce/llm-inference-service-dp-ep-deepseek-r1-gpu-deepep-ht.yaml"
)
_RAY: Final = "kuberay/ray-operator/config/samples/ray-service.llm-serve.yaml"
_CHART: Final = "production-stack/helm"


def blocks(document: Path = DOCUMENT) -> dict[str, Any]:
    """The document's blocks of YAML, by the comment in their first line."""
    found = re.findall(r"^```yaml\n# ([\w-]+)\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL)
    return {name: yaml.safe_load(text) for name, text in found}


def merged(base: Any, lines: Any) -> Any:
    """Lines merged into an example, as strategic merge does: maps by key, lists by their items' names."""
    if isinstance(base, dict) and isinstance(lines, dict):
        return base | {key: merged(base.get(key), value) for key, value in lines.items()}
    if isinstance(base, list) and isinstance(lines, list):
        key = next(
            (
                key
                for key in ("name", "groupName")
                if all(isinstance(item, dict) and key in item for item in lines)
            ),
            None,
        )
        if key is None:
            return lines
        named = {item[key]: item for item in base}
        return [
            *(merged(named[item[key]], item) if item[key] in named else item for item in lines),
            *(item for name, item in named.items() if name not in {item[key] for item in lines}),
        ]
    return lines


def _has(item: Any, key: str) -> bool:
    return isinstance(item, dict) and key in item


def checked(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """What was checked, and its complaints."""
    lines = blocks()
    example = next(yaml.safe_load_all((folder / _LWS).read_text()))
    definition = folder / "lws/config/crd/bases/leaderworkerset.x-k8s.io_leaderworkersets.yaml"
    yield _LWS, complaints(validator(definition), merged(example, lines["leaderworkerset"]))

    definition = folder / "kserve/config/crd/full/llmisvc/serving.kserve.io_llminferenceservices.yaml"
    service = validator(definition, "v1alpha2")
    template = lines["llminferenceservice"]["spec"]["template"]
    for path, more in (
        (_PD, {"spec": {"template": template, "prefill": {"template": template}}}),
        (_EP, {"spec": {"template": template, "worker": template}}),
    ):
        yield path, complaints(service, merged(yaml.safe_load((folder / path).read_text()), more))

    example = next(yaml.safe_load_all((folder / _RAY).read_text()))
    definition = folder / "kuberay/ray-operator/config/crd/bases/ray.io_rayservices.yaml"
    yield _RAY, complaints(validator(definition, "v1"), merged(example, lines["rayservice"]))
    yield _CHART, _rendered(folder / _CHART, lines["production-stack"])


def _rendered(chart: Path, values: dict[str, Any]) -> list[str]:
    """What is wrong with the pod that the chart makes of the values."""
    file = chart.parent / "values-of-moescope.json"
    file.write_text(json.dumps(values))
    command = [sys.executable, "-m", "devkit.chart", "render", str(chart), str(file)]
    made = json.loads(subprocess.check_output(command, cwd=ROOT, text=True))[str(file)]
    if "error" in made:
        return [made["error"]]
    (deployment,) = yaml.safe_load_all(made["templates"]["deployment-vllm-multi"])
    try:
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{'.'.join(map(str, error.path))}: {error.message}"]
    pod = deployment["spec"]["template"]["spec"]
    (model,) = values["servingEngineSpec"]["modelSpec"]
    wanted = {
        "env": (model["env"], pod["containers"][0]["env"]),
        "volumeMounts": (model["extraVolumeMounts"], pod["containers"][0]["volumeMounts"]),
        "volumes": (model["extraVolumes"], pod["volumes"]),
        "initContainers": (
            [model["initContainer"]["command"]],
            [item["command"] for item in pod["initContainers"]],
        ),
    }
    return [
        f"{name}: lacks {line}"
        for name, (ours, made_) in wanted.items()
        for line in ours
        if line not in made_
    ]


def main(words: Sequence[str]) -> int:
    """Check the document against the clones in a folder."""
    if len(words) != 1:
        print(__doc__, file=sys.stderr)
        return 2
    failed = 0
    for name, found in checked(Path(words[0])):
        print(f"{name}: {'fits' if not found else '; '.join(found)}")
        failed += bool(found)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
