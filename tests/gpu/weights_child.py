"""One vLLM engine on the GPU whose weights change: `python -m tests.gpu.weights_child SPEC RESULT`.

SPEC is that of `tests.gpu.runs`. The model is one of real, random weights, since dummy ones can't be loaded
again; a second one of the same shape has others. After each change the same requests are served. The result
has for each serving the tokens, the counts that a frame tells of it, and vLLM's own routed experts.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from devkit.frame_sink import FrameSink
from devkit.tiny_moe import Shape, make_checkpoint
from moescope.capture.wire import Frame
from tests.gpu.vllm_child import make_requests

SHAPE = Shape(hidden=512, experts=60, expert_width=128, heads=8, head_dim=128)
CHANGES = ("nothing", "reload", "sleep 1", "sleep 2", "others", "sleep 2, others")
"""What happens before each serving."""


def change(llm: Any, what: str, other: Path) -> None:
    """Change the weights of an engine, or have it sleep and wake."""
    paths = {"weights_path": str(other)} if "others" in what else {}
    if what.startswith("sleep 1"):
        llm.sleep(level=1)
        llm.wake_up()
    elif what.startswith("sleep 2"):
        llm.sleep(level=2)
        llm.wake_up(tags=["weights"])
        llm.collective_rpc("reload_weights", kwargs=paths)
        llm.wake_up(tags=["kv_cache"])
    elif what != "nothing":
        llm.collective_rpc("reload_weights", kwargs=paths)
    llm.reset_prefix_cache()


def counts_of(frame: Frame) -> np.ndarray:
    """Slots per (layer, expert), int64 [L, E]."""
    return np.frombuffer(frame.counts, "<i8").reshape(len(frame.layers), -1)


def routed_of(outputs: list[Any], layers: list[int]) -> list[list[int]]:
    """vLLM's own routed experts of all computed tokens, as slots per (layer, expert)."""
    rows = []
    for output in outputs:
        parts = [getattr(output, "prompt_routed_experts", None), output.outputs[0].routed_experts]
        rows.append(np.concatenate([part for part in parts if part is not None]).astype(np.int64))
    routed = np.concatenate(rows)
    return [np.bincount(routed[:, layer].ravel(), minlength=SHAPE.experts).tolist() for layer in layers]


def main(spec_path: str, result_path: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    folder, sink = Path(spec_path).parent, FrameSink()
    first, other = make_checkpoint(folder / "first", SHAPE), make_checkpoint(folder / "other", SHAPE, seed=1)
    os.environ.update(MOESCOPE_ENDPOINT=sink.url, MOESCOPE_INTERVAL="0.2", MOESCOPE_SERVER="gpu")
    from vllm import LLM, SamplingParams

    worker = {"worker_cls": "moescope.capture.worker.RoutingWorker"}
    arguments = spec["llm"] | worker | {"model": str(first), "dtype": "bfloat16"}
    llm = LLM(skip_tokenizer_init=True, seed=0, **arguments)
    requests = make_requests(long=8, short=12, longest=600, vocabulary=250)
    parameters = [
        SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
        for _, tokens in requests
    ]
    prompts: list[Any] = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    servings, total = [], 0
    before: np.ndarray | int = 0
    for what in CHANGES:
        change(llm, what, other)
        outputs = llm.generate(prompts, parameters, use_tqdm=False)
        tokens = [list(output.outputs[0].token_ids) for output in outputs]
        computed = sum(len(prompt) + len(ids) - 1 for (prompt, _), ids in zip(requests, tokens, strict=True))
        total += computed
        frame = sink.wait_for(total)
        time.sleep(0.5)  # nothing more comes
        frame = sink.frames[-1]
        counts = counts_of(frame)
        servings.append(
            {
                "what": what,
                "computed": computed,
                "tokens": tokens,
                "counted": frame.tokens,
                "total": total,
                "counts": (counts - before).tolist(),
                "rows": np.frombuffer(frame.rows, "<i8").tolist(),
                "routed": routed_of(outputs, [layer.layer for layer in frame.layers]),
                "state": [frame.state, frame.state_reason],
                "strategy": frame.strategy,
                "version": frame.weights_version,
                "label": frame.weights_label,
            }
        )
        before = counts
    firsts: dict[int, int] = {}
    for frame in sink.frames:
        firsts.setdefault(frame.weights_version, frame.tokens)
    result = {
        "servings": servings,
        "first_of_version": [firsts[version] for version in sorted(firsts)],
        "other": str(other),
        "epochs": len({frame.epoch for frame in sink.frames}),
    }
    Path(result_path).write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # vLLM's own shutdown is not what is tested here


if __name__ == "__main__":
    main(*sys.argv[1:])
