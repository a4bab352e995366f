"""One vLLM deployment on several GPUs: `python -m tests.gpu.parallel_child SPEC RESULT`.

SPEC is a JSON file: ``llm`` (arguments of `AsyncEngineArgs`), ``worker`` (a class), and ``requests`` (see
`make_requests`), which go to the DP ranks unevenly. The result is JSON too: for each DP rank the tokens that
it must have computed, for each worker its last frame and the loads of its steps, and what the workers noted.

With an ``endpoint`` in SPEC the frames go there, under the name ``server``. The result then has no frames,
and the deployment stays up until it is stopped.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from devkit.frame_sink import FrameSink
from tests.gpu.accounts import describe, settled
from tests.gpu.vllm_child import make_requests


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


def must_have(spec: dict[str, Any], done: list[tuple[int, int, int]]) -> dict[str, list[int]]:
    """By DP rank, the tokens that it computed for these requests, and those of decode."""
    ranks = range(spec["llm"].get("data_parallel_size", 1))
    return {
        "computed": [sum(p + g - 1 for r, p, g in done if r == rank) for rank in ranks],
        "decode": [sum(g - 1 for r, _, g in done if r == rank) for rank in ranks],
    }


async def run(spec: dict[str, Any], sink: FrameSink) -> dict[str, Any]:
    """The result, with the frames of the deployment's workers."""
    engine, done = await generate(spec)
    expected = must_have(spec, done)
    frames = await asyncio.to_thread(settled, sink, expected["computed"], spec["workers"])
    engine.shutdown()
    return {
        **expected,
        "workers": [describe(mine) for _, mine in sorted(frames.items())],
        "noted": await asyncio.to_thread(noted),
    }


async def stay_up(spec: dict[str, Any], result: Path) -> None:
    """Write what the workers must have computed, and stay up."""
    engine, done = await generate(spec)
    part = result.with_suffix(".part")
    await asyncio.to_thread(part.write_text, json.dumps(must_have(spec, done)))
    await asyncio.to_thread(part.rename, result)
    try:
        await asyncio.Event().wait()
    finally:
        engine.shutdown()


def noted() -> list[dict[str, Any]]:
    """What the workers noted."""
    paths = Path(os.environ["PASS_FOLDER"]).glob("passes-*")
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def main(spec_path: str, result_path: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    os.environ.update(MOESCOPE_INTERVAL="0.1", MOESCOPE_SERVER=spec.get("server", "gpu"))
    if "endpoint" in spec:
        os.environ["MOESCOPE_ENDPOINT"] = spec["endpoint"]
        asyncio.run(stay_up(spec, Path(result_path)))
        return
    sink = FrameSink()
    os.environ["MOESCOPE_ENDPOINT"] = sink.url
    Path(result_path).write_text(json.dumps(asyncio.run(run(spec, sink))))
    sys.stdout.flush()
    os._exit(0)  # vLLM's own shutdown is not what is tested here


if __name__ == "__main__":
    main(*sys.argv[1:])
