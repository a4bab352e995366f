"""What memory capture takes in one worker: DeepSeek-V3's shape, by tokens of a step.

    python -m benchmarks.capture_memory

58 MoE layers of 256 experts, top-8, over 8 EP ranks. A whole session of a worker is made, as for a GPU: its
tensors for the device are of torch's kind without contents ("meta"), so that all that the session allocates
is allocated, by its own code, with its own sizes, and a machine without a GPU can tell. What asks for pinned
memory gets none here and is counted as pinned. Memory of the host besides is what Python's allocator and
numpy hold more after the session was made, and torch without pinning.

On top comes what a step keeps until it is counted: the largest sum of ids over a pass of all layers, with the
strategy of one kernel a step, whose launches are left out here. Ids are int32 as vLLM's routers make them;
they are vLLM's own tensors, which live longer because of capture. "All ids" is what they take without the
bound (`MOESCOPE_KEPT_IDS_MIB`).
"""

from __future__ import annotations

import gc
import sys
import tempfile
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from vllm.model_executor.layers.fused_moe.router.cpu_router import CPURouter

from benchmarks.host_share import one_rank
from benchmarks.results_file import keep, parser_of
from devkit.fake_placement import pretend_ep_ranks
from moescope.capture.counting.pointer_tables import PointerTables
from moescope.capture.counting.reference import CountBuffers
from moescope.capture.seam.rows import Layout, RowSpan
from moescope.capture.session import CaptureSession
from moescope.capture.settings.environment import DEFAULT_KEPT_IDS_MIB, CaptureSettings
from moescope.capture.wire import MoeLayer
from tests.capture.scheduler import Scheduling, full_attention, model_config
from tests.capture.seam.runners import in_layers, runner

LAYERS: Final = [MoeLayer(index, 256, 8) for index in range(58)]
EP_RANKS: Final = 8
TOKENS: Final = (8192, 65536)
RESULTS: Final = Path(__file__).with_name("results") / "capture_memory.json"
MODES: Final = {"capture": {}, "traces of those who ask": {"MOESCOPE_TRACE_OPT_IN": "1"}}
KINDS: Final = ("device", "pinned", "host")
MIB: Final = 1 << 20


class Allocations(TorchFunctionMode):
    """Notes the memory of tensors that are made while it is active, by kind and by the module that asks.

    Tensors for the device are those on "meta". Memory is counted once, whatever shares it, while it lives.
    """

    def __init__(self) -> None:
        super().__init__()
        self._made: dict[int, tuple[StorageWeakRef, str, str, int]] = {}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call the function, without pinning, and note what it returns."""
        kwargs = dict(kwargs or {})
        pinned = kwargs.pop("pin_memory", None) is not None
        made = func(*args, **kwargs)
        if isinstance(made, torch.Tensor):
            self._note(made, "pinned" if pinned else "device" if made.device.type == "meta" else "host")
        return made

    def _note(self, made: torch.Tensor, kind: str) -> None:
        storage = made.untyped_storage()
        reference = StorageWeakRef(storage)
        earlier = self._made.get(reference.cdata)
        if earlier is None or earlier[0].expired():
            self._made[reference.cdata] = (reference, kind, _asking(), storage.nbytes())

    def alive(self) -> dict[str, dict[str, int]]:
        """Bytes that live, by kind and module."""
        found: dict[str, dict[str, int]] = {kind: defaultdict(int) for kind in KINDS}
        for reference, kind, module, size in self._made.values():
            if not reference.expired():
                found[kind][module] += size
        return found


def _asking() -> str:
    """The module of capture that asks for the tensor, without the folders above it."""
    frame: Any = sys._getframe(3)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith("moescope.capture."):
            return name.removeprefix("moescope.capture.")
        frame = frame.f_back
    return "elsewhere"


def worker_of(tokens: int, folder: Path) -> tuple[torch.nn.Module, Any]:
    """A model of the shape without weights, and vLLM's configuration for steps of so many tokens."""
    routers = [CPURouter(top_k=layer.top_k, global_num_experts=layer.num_experts) for layer in LAYERS]
    made = [
        runner(layer.layer, layer.num_experts, router=router)
        for layer, router in zip(LAYERS, routers, strict=True)
    ]
    most = {"max_num_seqs": 1024, "max_num_batched_tokens": tokens}
    scheduling = Scheduling(model_config(folder), [full_attention(16)], 64, v2=True, **most)
    return in_layers(*made), scheduling.config


def measure(tokens: int, variables: dict[str, str]) -> dict[str, Any]:
    """Bytes by kind, and by kind and module, of a session for steps of so many tokens."""
    settings = CaptureSettings.read({"MOESCOPE_ENDPOINT": "http://127.0.0.1:9", **variables})[0]
    device = torch.device("meta")
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(torch.cuda, "Event"),
        mock.patch("moescope.capture.session.why_no_traces", return_value=None),  # "meta" is refused
    ):
        model, config = worker_of(tokens, Path(folder))
        with Allocations():  # a first one imports and caches what all later ones use
            CaptureSession(model, config, device, settings).close()
        gc.collect()
        tracemalloc.start()
        with Allocations() as allocations:
            session = CaptureSession(model, config, device, settings)
            tables = PointerTables(LAYERS, device)  # of the strategy that only a GPU has
            gc.collect()
            python = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        parts = allocations.alive()
        session.close()
        del tables
    kinds = {kind: sum(parts[kind].values()) for kind in KINDS}
    kinds["host"] += python
    return {"tokens": tokens, **kinds, "parts": {kind: dict(found) for kind, found in parts.items()}}


def kept_ids(tokens: int, bound: int) -> int:
    """The most bytes of ids that are kept at a time in an eager pass over all layers."""
    from moescope.capture.counting import per_step

    most, span = 0, RowSpan(Layout.SINGLE_DP, 0, tokens, 0)
    buffers = CountBuffers(LAYERS, torch.device("cpu"), tokens)
    with (
        mock.patch.object(per_step, "launch_step"),
        mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=False),
    ):
        strategy = per_step.KernelPerStep(buffers, bound)
        strategy.begin_step()
        for ordinal, layer in enumerate(LAYERS):
            ids = torch.zeros(tokens, layer.top_k, dtype=torch.int32)
            before = strategy._held
            strategy.record(ordinal, ids, span, buffers.flat)
            most = max(most, before + ids.numel() * ids.element_size())
        strategy.end_step()
    return most


def rows_of(tokens: Sequence[int]) -> Iterator[dict[str, Any]]:
    """A row for each number of tokens and mode."""
    for count in tokens:
        kept = kept_ids(count, DEFAULT_KEPT_IDS_MIB << 20)
        unbounded = sum(count * layer.top_k * 4 for layer in LAYERS)
        for mode, variables in MODES.items():
            with one_rank():
                found = measure(count, variables)
            yield {"mode": mode, **found, "kept_ids": kept, "all_ids": unbounded}


def main() -> None:
    """Print the table, and write it."""
    options = parser_of(__doc__, RESULTS, 1).parse_args()
    pretend_ep_ranks(EP_RANKS)
    rows = list(rows_of(TOKENS))
    heads = (f"{head:>8}" for head in (*KINDS, "kept ids", "all ids"))
    print(f"{'tokens':>7}  {'mode':<24} {' '.join(heads)}  MiB")
    for row in rows:
        sizes = (f"{row[kind] / MIB:8.2f}" for kind in (*KINDS, "kept_ids", "all_ids"))
        print(f"{row['tokens']:>7}  {row['mode']:<24} {' '.join(sizes)}")
    for row in rows:
        print(f"{row['tokens']} tokens, {row['mode']}")
        for kind, parts in row["parts"].items():
            for module, size in sorted(parts.items(), key=lambda item: -item[1]):
                print(f"  {kind:<7} {module:<28} {size / MIB:8.3f}")
    keep(options, rows, layers=str(len(LAYERS)), ep_ranks=str(EP_RANKS))


if __name__ == "__main__":
    main()
