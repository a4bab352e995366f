"""One vLLM engine on the GPU with a spy on its steps: `python -m tests.gpu.vllm_child SPEC RESULT`.

SPEC is a JSON file: ``llm`` (arguments of `vllm.LLM`), ``capture``, ``requests`` (see `make_requests`). The
result is JSON too: texts as token ids, what the scheduler scheduled, how each step ran, the last frame that
came over HTTP, and vLLM's own routed experts, if asked for.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from devkit.fake_placement import pretend_ep_ranks
from devkit.frame_sink import FrameSink
from moescope.capture.wire.traces import TracePart
from tests.gpu.filled import fill
from tests.gpu.spy import Spy
from tests.step_loads import placed_counts, step_loads


def make_requests(
    long: int, short: int, longest: int, vocabulary: int, seed: int = 0
) -> list[tuple[list[int], int]]:
    """Prompts, each with a number of tokens to generate.

    First `long` prompts of up to `longest` tokens, whose prefill fills steps; then `short` ones, which
    join the decode of others as soon as there is room, so that small steps mix both.
    """
    rng = random.Random(seed)
    lengths = [rng.choice([1, rng.randint(2, 40), rng.randint(2, longest)]) for _ in range(long)]
    lengths += [rng.randint(2, 20) for _ in range(short)]
    return [
        ([rng.randrange(1, vocabulary) for _ in range(length)], rng.choice([1, 7, 40, 64]))
        for length in lengths
    ]


def converse(llm: Any, requests: list[Any], turns: int, vocabulary: int) -> tuple[list[Any], list[Any]]:
    """Several turns of conversations: in each the prompt is all that was said, and some new tokens.

    From its second turn on a conversation goes on in two ways, at once. No two computations of a full block
    have the same tokens, so a cached block has one possible origin, unless it was evicted meanwhile.

    Returns:
        The outputs, and the requests, of all turns.
    """
    from vllm import SamplingParams

    rng = random.Random(1)
    outputs: list[Any] = []
    asked: list[Any] = []
    for turn in range(turns):
        prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
        parameters = [
            SamplingParams(temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False)
            for _, tokens in requests
        ]
        found = llm.generate(prompts, parameters, use_tqdm=False)
        outputs += found
        asked += requests
        requests = [
            ([*prompt, *output.outputs[0].token_ids, *rng.choices(range(1, vocabulary), k=20)], tokens)
            for output, (prompt, tokens) in zip(found, requests, strict=True)
            for _ in range(1 if turn == 0 else 2)
        ]
    return outputs, asked


def cut_short(llm: Any, outputs: list[Any], requests: list[Any]) -> tuple[list[Any], list[Any]]:
    """All requests once more: those with several tokens end at one in the middle, by a stop token.

    With asynchronous scheduling vLLM has begun the next step by then, and computes a row too many.

    Returns:
        The outputs, and the requests.
    """
    from vllm import SamplingParams

    parameters = [
        SamplingParams(
            temperature=0.0,
            max_tokens=tokens,
            ignore_eos=True,
            detokenize=False,
            stop_token_ids=[output.outputs[0].token_ids[tokens // 2]] if tokens > 1 else None,
        )
        for output, (_, tokens) in zip(outputs, requests, strict=True)
    ]
    prompts = [{"prompt_token_ids": prompt} for prompt, _ in requests]
    return list(llm.generate(prompts, parameters, use_tqdm=False)), requests


def main(spec_path: str, result_path: str) -> None:
    spec = json.loads(Path(spec_path).read_text())
    sink = FrameSink()
    os.environ.update(MOESCOPE_ENDPOINT=sink.url, MOESCOPE_INTERVAL="0.2", MOESCOPE_SERVER="gpu")
    import torch
    from vllm import LLM

    spy = Spy()
    spy.install()
    if spec.get("ep_ranks"):
        pretend_ep_ranks(spec["ep_ranks"])
    worker = {"worker_cls": "moescope.capture.worker.RoutingWorker"} if spec["capture"] else {}
    llm = LLM(load_format="dummy", skip_tokenizer_init=True, seed=0, **worker, **spec["llm"])
    memory = torch.cuda.memory_reserved()
    requests = make_requests(**spec["requests"])
    spy.start()
    outputs, requests = converse(llm, requests, spec.get("turns", 1), spec["requests"]["vocabulary"])
    if spec.get("stops"):
        more, again = cut_short(llm, outputs, requests)
        outputs, requests = [*outputs, *more], [*requests, *again]
    generated = [list(output.outputs[0].token_ids) for output in outputs]
    computed = sum(len(prompt) + len(ids) - 1 for (prompt, _), ids in zip(requests, generated, strict=True))
    computed -= sum(output.num_cached_tokens or 0 for output in outputs)
    separate = not spy.scheduled  # the engine runs in a process of its own
    total = computed if separate else spy.scheduled
    result: dict[str, Any] = {
        "generated": generated,
        "computed": computed,
        "scheduled": None if separate else spy.scheduled,
        "preempted": spy.preempted,
        "steps": list(spy.steps),
        "layouts": list(spy.layouts),
        "phases": list(spy.phases),
        "memory_reserved": memory,
    }
    if spec["capture"]:
        frame = sink.wait_for(total)
        flat = np.frombuffer(frame.counts, dtype="<i8")
        ends = np.cumsum([layer.num_experts for layer in frame.layers])[:-1]
        result["frame"] = {
            "tokens": frame.tokens,
            "state": [frame.state, frame.state_reason],
            "strategy": frame.strategy,
            "layers": [[layer.layer, layer.num_experts, layer.top_k] for layer in frame.layers],
            "uncovered": [[layer.layer, layer.reason] for layer in frame.uncovered],
            "rows": np.frombuffer(frame.rows, dtype="<i8").tolist(),
            "counts": [part.tolist() for part in np.split(flat, ends)],
            "drops": frame.drops,
            "steps": [frame.steps, frame.decode_steps, frame.mixed_steps],
            "decode_tokens": frame.decode_tokens,
            "decode_rows": np.frombuffer(frame.decode_rows, dtype="<i8").tolist(),
            "decode_counts": [
                part.tolist() for part in np.split(np.frombuffer(frame.decode_counts, dtype="<i8"), ends)
            ],
        }
        if spec.get("ep_ranks"):
            result["loads"] = {step: load.tolist() for step, load in step_loads(sink.frames).items()}
            result["placed"] = placed_counts(frame)
    if float(os.environ.get("MOESCOPE_TRACE_RATE", "0")):
        result["traced"] = _traced(llm, sink, outputs, requests)
        last = sink.frames[-1]
        result["drafts"] = [last.accepted_drafts, last.rejected_drafts]
        result["unavailable"] = last.unavailable
    if spec["llm"].get("enable_return_routed_experts"):
        of_requests = [_routed(output) for output in outputs]
        routed = np.concatenate(of_requests)
        decoded = np.concatenate(
            [rows[len(prompt) :] for rows, (prompt, _) in zip(of_requests, requests, strict=True)]
        )
        experts = spec["experts"]
        result["routed_rows"] = len(routed)
        result["routed"] = [
            np.bincount(routed[:, layer].ravel(), minlength=experts).tolist()
            for layer in range(routed.shape[1])
        ]
        result["routed_decode"] = [
            np.bincount(decoded[:, layer].ravel(), minlength=experts).tolist()
            for layer in range(routed.shape[1])
        ]
    Path(result_path).write_text(json.dumps(result))
    sys.stdout.flush()
    os._exit(0)  # vLLM's own shutdown is not what is tested here


def _traced(llm: Any, sink: FrameSink, outputs: list[Any], requests: list[Any]) -> dict[str, Any]:
    """The traces of the requests. vLLM ends them with the step after the last one."""
    from vllm import SamplingParams

    layers = sink.frames[-1].layers
    llm.generate([{"prompt_token_ids": [1]}], SamplingParams(max_tokens=1, detokenize=False), use_tqdm=False)
    parts: dict[str, list[TracePart]] = {}
    for part in sink.wait_for_traces(len(outputs)):
        parts.setdefault(part.client_ids[0], []).append(part)
    counts = [np.zeros(layer.num_experts, np.int64) for layer in layers]
    filled = fill(parts)
    like_vllm, once, steps_rise, rejected = [], [], [], 0
    reasons: Counter[str] = Counter()
    said: Counter[str] = Counter()
    referred: Counter[int] = Counter()
    cached = holes = 0
    for output, (prompt, _) in zip(outputs, requests, strict=True):
        mine = parts.pop(output.request_id, [])
        if not mine:
            continue
        rejected += mine[0].rejected_drafts
        reasons[f"{mine[0].finish_reason} for {output.outputs[0].finish_reason}"] += 1
        whole = filled[output.request_id]
        said += whole.said
        referred[len(whole.referred)] += 1
        cached += mine[0].cached_tokens
        holes += int((whole.rows == -1).any(axis=(1, 2)).sum())
        ids = [np.concatenate([part.ids_of(i) for part in mine]) for i in range(len(layers))]
        for found, chosen in zip(counts, ids, strict=True):
            found += np.bincount(chosen.ravel(), minlength=len(found))
        computed = len(prompt) + len(output.outputs[0].token_ids) - 1 - mine[0].cached_tokens
        runs = [(run.first, run.count) for part in mine for run in part.runs]
        joined = all(after[0] == sum(before) for before, after in pairwise(runs))
        once.append(joined and sum(count for _, count in runs) == computed)
        steps = np.concatenate([np.frombuffer(part.steps, "<i8") for part in mine])
        steps_rise.append(len(steps) == len(ids[0]) and bool((np.diff(steps) >= 0).all()))
        if getattr(output.outputs[0], "routed_experts", None) is not None:
            theirs = _routed(output)[:, [layer.layer for layer in layers]]  # they have the dense layers too
            like_vllm.append(bool(np.array_equal(whole.rows, theirs)))
    expected, deadline = {"delivered": len(once)}, time.monotonic() + 60
    if len(once) == len(outputs):  # all are traced, the request above too, which vLLM does not end
        expected["captured"] = len(once) + 1
    while not expected.items() <= sink.frames[-1].traces.items() and time.monotonic() < deadline:
        time.sleep(0.1)
    return {
        "requests": len(outputs),
        "traces": len(once),
        "unknown": len(parts),
        "counts": [found.tolist() for found in counts],
        "computed_once": once,
        "steps_rise": steps_rise,
        "like_vllm": like_vllm,
        "rejected": rejected,
        "reasons": reasons,
        "said": said,
        "referred": referred,
        "cached": cached,
        "holes": holes,
        "accounts": sink.frames[-1].traces,
    }


def _routed(output: Any) -> np.ndarray:
    """int [tokens, layers, top_k]: vLLM's routed experts of a request's computed tokens."""
    parts = [getattr(output, "prompt_routed_experts", None), output.outputs[0].routed_experts]
    return np.concatenate([part for part in parts if part is not None]).astype(np.int64)


if __name__ == "__main__":
    main(*sys.argv[1:])
