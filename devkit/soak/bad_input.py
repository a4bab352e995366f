"""Bad input by the ten thousand: Hypothesis on bodies, schemathesis on queries, atheris on decoding."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil

from devkit.soak.gate import Options, Outcome
from devkit.soak.load import Fleet, drive
from devkit.soak.serving import serving
from tests.service.api.fuzzing import check_traces, check_what_is_answered, fuzz, fuzz_queries
from tests.service.conftest import Clock, Service


def generated(options: Options) -> Outcome:
    """Hostile frames, traces and queries against a real service, whose memory is watched."""
    config = options.folder / "moescope.toml"
    config.write_text("max_frames_per_s = 1e9\nmin_tokens = 1\n")
    store = options.folder / "store"
    with (
        serving(options.folder, "--config", str(config), store=store) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        service = Service(running.url, Clock(), client)
        process = psutil.Process(running.process.pid)
        drive(running, Fleet(4, 8, 64, 2), 2)
        before = process.memory_info().rss / 2**20
        frames = fuzz(service, "/v1/ingest", options.cases(10_000))
        traces = fuzz(service, "/v1/traces", options.cases(4_000))
        queries = fuzz_queries(service, options.cases(4_000))
        check_traces(service)
        check_what_is_answered(service)
        after = process.memory_info().rss / 2**20
        assert "Traceback" not in running.text, running.text[-3000:]
    total = frames.total() + traces.total() + queries.total()
    return Outcome(
        after - before < 256,
        f"{total} cases: frames {_shown(frames)}, traces {_shown(traces)}, queries "
        f"{_shown(queries)}; no answer "
        f"of 500 or above, every refusal names its field; memory {before:.0f} -> {after:.0f} MiB",
    )


def schema(options: Options) -> Outcome:
    """schemathesis against the OpenAPI document of a service with data."""
    if find_spec("schemathesis") is None:
        return Outcome(False, "not run: uv pip install --python .venv/bin/python -e '.[soak]'")
    checks = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
    store = Path(tempfile.mkdtemp(dir=options.folder))
    with serving(options.folder, store=store) as service:
        drive(service, Fleet(2, 4, 16, 2), 3)
        command = [
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", f"{service.url}/openapi.json", "--checks", checks, "--no-color"),
            *("--phases", "coverage,fuzzing", "--max-examples", str(options.cases(400))),
            # Its bodies are msgpack, which schemathesis can't make, and a stream that never ends.
            *("--exclude-path", "/v1/live", "--exclude-operation-id-regex", "(ingest|take)_v1.*_post"),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=options.folder)
        alive = httpx.get(f"{service.url}/healthz").status_code == 200
    found = re.search(r"(\d+) generated, (.+)", done.stdout)
    assert found, done.stdout[-3000:]
    return Outcome(
        done.returncode == 0 and alive,
        f"{found[1]} cases, {found[2].strip()}" + ("" if done.returncode == 0 else _failures(done.stdout)),
    )


def _failures(text: str) -> str:
    """What schemathesis says is wrong, and where."""
    found = re.findall(r"^_+ ((?:GET|POST|PUT|DELETE) .+?) _+$|^ *- (.+)$", text, re.MULTILINE)
    return ": " + "; ".join(part for pair in found for part in pair if part)[:1000]


def decoder(options: Options) -> Outcome:
    """atheris, guided by coverage, on the decoders of frames and traces and the accounting behind them."""
    if find_spec("atheris") is None:
        return Outcome(False, "not run: uv pip install --python .venv/bin/python -e '.[soak]'")
    seconds = options.cases(120)
    began = time.monotonic()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "devkit.soak.atheris_target",
            f"-max_total_time={seconds}",
            "-rss_limit_mb=1024",
            "-max_len=65536",
            "-timeout=5",
            f"-artifact_prefix={options.folder}/",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    runs = re.findall(r"#(\d+)\s", done.stderr)
    assert runs, done.stderr[-2000:]
    return Outcome(
        done.returncode == 0,
        f"{int(runs[-1]):,} runs in {time.monotonic() - began:.0f} s"
        + (", no crash" if done.returncode == 0 else done.stderr[-1500:]),
    )


def _shown(statuses: dict[int, int]) -> str:
    return ", ".join(f"{count} x {status}" for status, count in sorted(statuses.items()))
