"""A vLLM deployment with EPLB on two GPUs: `python -m tests.gpu.eplb_child SPEC RESULT`.

As `parallel_child`; the result has the placements that each worker's frames carried as well.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from devkit.frame_sink import FrameSink
from moescope.capture.wire import Frame, unpack_ids
from tests.gpu.parallel_child import describe, generate, noted, settled


def placements(frames: list[Frame]) -> list[list[Any]]:
    """The placements in the frames' order: version, and for each layer the logical expert of each copy."""
    found: list[list[Any]] = []
    for frame in sorted(frames, key=lambda frame: frame.seq):
        placement = frame.placement
        if placement is None:
            latest = [None, None]
        else:
            tables = [unpack_ids(table.physical_to_logical).tolist() for table in placement.tables]
            latest = [placement.version, [tables[index] for index in placement.table_of_layer]]
        if not found or found[-1] != latest:
            found.append(latest)
    return found


async def run(spec: dict[str, Any], sink: FrameSink) -> dict[str, Any]:
    engine, done = await generate(spec)
    ranks = range(spec["llm"].get("data_parallel_size", 1))
    computed = {rank: sum(p + g - 1 for r, p, g in done if r == rank) for rank in ranks}
    workers = len(ranks) * spec["llm"].get("tensor_parallel_size", 1)
    frames = await asyncio.to_thread(settled, sink, computed, workers)
    engine.shutdown()
    return {
        "computed": list(computed.values()),
        "workers": [describe(mine) | {"placements": placements(mine)} for _, mine in sorted(frames.items())],
        "noted": await asyncio.to_thread(noted),
    }


def main(spec_path: str, result_path: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    sink = FrameSink()
    os.environ.update(MOESCOPE_ENDPOINT=sink.url, MOESCOPE_INTERVAL="0.1", MOESCOPE_SERVER="gpu")
    result = asyncio.run(run(spec, sink))
    Path(result_path).write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # vLLM's own shutdown is not what is tested here


if __name__ == "__main__":
    main(*sys.argv[1:])
