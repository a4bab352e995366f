"""Requests served while the weights change, in each way that a CPU has."""

from __future__ import annotations

from typing import Any

from devkit.frame_sink import FrameSink
from tests.waiting import wait_until

SPANS = "spans"


def serve_while_weights_change(engine: Any, sink: FrameSink, model: str) -> dict[str, Any]:
    """Serve, change the weights to the same ones, and so on; the last change is in the middle of a request.

    Returns:
        The tokens of each serving, how many tokens each version computed as it was asked to, and what frames
        and traces tell of it.
    """
    llm, served, computed = engine.llm, [], []
    for change in (None, "reload_weights", "load_some"):
        if change is not None:
            llm.collective_rpc(change)
        tokens, number = engine.serve()
        served.append(tokens)
        computed.append(number)
    llm.collective_rpc("sleep", kwargs={"level": 2})  # which a CPU ignores
    llm.collective_rpc("wake_up")
    before, after, output = _spanning_request(llm, model)
    computed[-1] += before
    computed.append(after)

    def told() -> bool:
        return bool(sink.frames) and sink.frames[-1].tokens >= sum(computed)

    wait_until(told, "not all tokens are told")
    parts = sink.wait_for_traces(3 * len(served[0]) + 1)
    ends = {frame.weights_version: frame.tokens for frame in sink.frames}
    last = sink.frames[-1]
    return {
        "served": served,
        "computed": computed,
        "ends": [ends[version] for version in sorted(ends)],
        "first_of_version": _first_tokens(sink),
        "label": last.weights_label,
        "rows": [int.from_bytes(last.rows[at : at + 8], "little") for at in range(0, len(last.rows), 8)],
        "state": (last.state, last.state_reason),
        "spanning": [
            (part.tokens, part.weights_version) for part in parts if part.request_id.startswith(SPANS)
        ],
        "versions": sorted({part.weights_version for part in parts}),
        "output": output,
    }


def _spanning_request(llm: Any, model: str) -> tuple[int, int, list[int]]:
    """A request whose weights change after some steps: tokens computed before, after, and its output."""
    from vllm import SamplingParams

    engine, prompt = llm.llm_engine, "a request that goes on " * 2
    parameters = SamplingParams(temperature=0.0, max_tokens=24, ignore_eos=True)
    engine.add_request(SPANS, prompt, parameters)
    output = None
    for _ in range(6):
        [output] = engine.step()
    assert output is not None
    before = len(output.prompt_token_ids) + len(output.outputs[0].token_ids) - 1
    llm.collective_rpc("reload_weights", kwargs={"weights_path": model})
    while engine.has_unfinished_requests():
        [output] = engine.step()
    tokens = list(output.outputs[0].token_ids)
    last = SamplingParams(max_tokens=1)
    [another] = llm.generate("x", last, use_tqdm=False)  # only its step says that the other has ended
    after = len(output.prompt_token_ids) + len(tokens) - 1 - before
    return before, after + len(another.prompt_token_ids), tokens


def _first_tokens(sink: FrameSink) -> list[int]:
    """Tokens of the first frame of each version, by rising version."""
    found: dict[int, int] = {}
    for frame in sink.frames:
        found.setdefault(frame.weights_version, frame.tokens)
    return [found[version] for version in sorted(found)]
