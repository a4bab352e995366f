"""One vLLM deployment on several GPUs: `python -m tests.gpu.parallel_child SPEC RESULT`.

SPEC is a JSON file: ``llm`` (arguments of `AsyncEngineArgs`), ``worker`` (a class), and ``requests`` (see
`make_requests`), which go to the DP ranks unevenly. The result is JSON too: for each worker its last frame
and the loads of its steps, for each DP rank the tokens it must have computed, and what its workers noted of
each forward pass.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from devkit.frame_sink import FrameSink
from moescope.capture.wire import Frame, unpack_counts
from tests.gpu.vllm_child import make_requests
from tests.step_loads import placed_counts, step_loads

SETTLE = 30.0


async def generate(spec: dict[str, Any]) -> tuple[Any, list[tuple[int, int, int]]]:
    """The engine; and for each request its DP rank, the tokens of its prompt and those that it generated."""
    from vllm import SamplingParams
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    arguments = AsyncEngineArgs(
        load_format="dummy",
        skip_tokenizer_init=True,
        seed=0,
        worker_cls=spec["worker"],
        **spec["llm"],
    )
    engine = AsyncLLM.from_engine_args(arguments)
    dp_size = spec["llm"].get("data_parallel_size", 1)

    async def one(number: int, prompt: list[int], tokens: int) -> tuple[int, int, int]:
        rank = (number % 3 == 0) % dp_size  # two thirds of the requests go to rank 0
        parameters = SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        generated = 0
        async for output in engine.generate(
            {"prompt_token_ids": prompt},
            parameters,
            f"request-{number}",
            data_parallel_rank=rank if dp_size > 1 else None,
        ):
            generated = len(output.outputs[0].token_ids)
        return rank, len(prompt), generated

    requests = make_requests(**spec["requests"])
    done = await asyncio.gather(*(one(i, prompt, tokens) for i, (prompt, tokens) in enumerate(requests)))
    return engine, list(done)


def by_worker(frames: list[Frame]) -> dict[tuple[int, int], list[Frame]]:
    """All frames by DP and TP rank."""
    found: dict[tuple[int, int], list[Frame]] = {}
    for frame in list(frames):
        found.setdefault((frame.producer.dp_rank, frame.producer.tp_rank), []).append(frame)
    return found


def settled(sink: FrameSink, expected: dict[int, int], workers: int) -> dict[tuple[int, int], list[Frame]]:
    """The frames once all workers have sent all, or as they are when time is up."""
    deadline = time.monotonic() + SETTLE
    passes: set[int] = set()
    while time.monotonic() < deadline:
        time.sleep(1)
        found = by_worker(sink.frames)
        last = [frames[-1] for frames in found.values()]
        before, passes = passes, {frame.steps + frame.idle_steps for frame in last}
        complete = all(frame.tokens >= expected[frame.producer.dp_rank] for frame in last)
        if len(found) == workers and complete and len(passes) == 1 and passes == before:
            break
    return by_worker(sink.frames)


def describe(frames: list[Frame]) -> dict[str, Any]:
    """One worker's account."""
    frame = frames[-1]
    ends = np.cumsum([layer.num_experts for layer in frame.layers])[:-1]
    has_loads = frame.step_loads is not None
    return {
        "state": [frame.state, frame.state_reason],
        "strategy": frame.strategy,
        "ranks": [frame.producer.dp_rank, frame.producer.tp_rank, frame.producer.ep_rank],
        "ep_size": frame.producer.ep_size,
        "layers": [[layer.layer, layer.num_experts, layer.top_k] for layer in frame.layers],
        "uncovered": [[layer.layer, layer.reason] for layer in frame.uncovered],
        "tokens": frame.tokens,
        "rows": unpack_counts(frame.rows).tolist(),
        "counts": [part.tolist() for part in np.split(unpack_counts(frame.counts), ends)],
        "decode_tokens": frame.decode_tokens,
        "decode_rows": unpack_counts(frame.decode_rows).tolist(),
        "steps": [frame.steps, frame.decode_steps, frame.mixed_steps, frame.idle_steps],
        "drops": frame.drops,
        "loads": {step: load.tolist() for step, load in step_loads(frames).items()} if has_loads else None,
        "placed": placed_counts(frame) if has_loads else None,
    }


async def run(spec: dict[str, Any], sink: FrameSink) -> dict[str, Any]:
    """The result."""
    engine, done = await generate(spec)
    ranks = range(spec["llm"].get("data_parallel_size", 1))
    computed = {rank: sum(p + g - 1 for r, p, g in done if r == rank) for rank in ranks}
    decode = {rank: sum(g - 1 for r, _, g in done if r == rank) for rank in ranks}
    workers = len(ranks) * spec["llm"].get("tensor_parallel_size", 1)
    frames = await asyncio.to_thread(settled, sink, computed, workers)
    engine.shutdown()
    return {
        "computed": list(computed.values()),
        "decode": list(decode.values()),
        "workers": [describe(mine) for _, mine in sorted(frames.items())],
        "noted": await asyncio.to_thread(noted),
    }


def noted() -> list[dict[str, Any]]:
    """What the workers noted."""
    paths = Path(os.environ["PASS_FOLDER"]).glob("passes-*")
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def main(spec_path: str, result_path: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    sink = FrameSink()
    os.environ.update(MOESCOPE_ENDPOINT=sink.url, MOESCOPE_INTERVAL="0.2", MOESCOPE_SERVER="gpu")

    result = asyncio.run(run(spec, sink))
    Path(result_path).write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # vLLM's own shutdown is not what is tested here


if __name__ == "__main__":
    main(*sys.argv[1:])
