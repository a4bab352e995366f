"""Ways round the callback: with vLLM's own classes where they can be made here, else with what they hold."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moescope.capture.seam.bypasses import find_bypasses
from moescope.capture.seam.survey import survey_model
from tests.capture.seam.configs import config
from tests.capture.seam.runners import in_layers, runner


def reasons(model: torch.nn.Module, **changes: Any) -> dict[int, str]:
    """The uncovered layers of a survey."""
    vllm_config = config()
    for name, value in changes.items():
        setattr(vllm_config, name, value)
    return {layer.layer: layer.reason for layer in survey_model(model, vllm_config).uncovered}


def empty(kind: type[torch.nn.Module], **held: Any) -> torch.nn.Module:
    """A module of vLLM's class, with these attributes only."""
    made = kind.__new__(kind)
    torch.nn.Module.__init__(made)
    for name, value in held.items():
        setattr(made, name, value)
    return made


def v41(*layers: torch.nn.Module, **held: Any) -> torch.nn.Module:
    """DeepSeek-V4.1's own classes around these blocks."""
    family = pytest.importorskip("vllm.models.deepseek_v41.nvidia.model")
    inner = empty(family.DeepseekV4Model, **held.pop("inner", {}))
    inner.layers = in_layers(*layers).model.layers
    return empty(family.DeepseekV41LLMForCausalLM, model=inner, **held)


def replaying(*layers: torch.nn.Module) -> torch.nn.Module:
    replay = pytest.importorskip("vllm.models.deepseek_v41.decoder_replay_layers")
    held = replay.DecoderReplayLayers(128, print, print, set(), "model.layers.2.attn")
    return v41(*layers, inner={"decoder_replay_layers": held, "decoder_replay_start": 2})


def test_layers_that_are_replayed_on_the_last_rows_of_each_request_are_uncovered() -> None:
    found = reasons(replaying(*map(runner, range(4))))
    assert sorted(found) == [2, 3]
    assert "decoder replay" in found[2]
    assert "--no-swa-bounded-replay" in found[2]


@pytest.mark.parametrize(
    ("returns", "graphs", "covered"), [(True, False, True), (True, True, False), (False, False, False)]
)
def test_replay_layers_are_covered_where_vllm_keeps_all_rows(
    returns: bool, graphs: bool, covered: bool
) -> None:
    found = reasons(
        replaying(*map(runner, range(4))),
        aux_output_config=SimpleNamespace(enable_return_routed_experts=returns),
        compilation_config=SimpleNamespace(cudagraph_decoder_replay=graphs),
    )
    assert (found == {}) is covered


def test_a_model_that_does_not_replay_is_covered() -> None:
    model = v41(*map(runner, range(3)), inner={"decoder_replay_layers": None, "decoder_replay_start": 3})
    assert reasons(model) == {}


def test_layers_with_a_mono_kernel_are_uncovered_and_the_others_are_not() -> None:
    mono = pytest.importorskip("vllm.models.deepseek_v41.amd.mono_decode").MonoDecodeLayer
    model = in_layers(*map(runner, range(3)))
    for i, held in enumerate((mono.__new__(mono), None, mono.__new__(mono))):
        model.model.layers[i].mono = held
    found = reasons(model)
    assert sorted(found) == [0, 2]
    assert found[0] == (
        "MonoDecodeLayer routes inside its kernel in decode steps; start vLLM without --monokernel"
    )


def test_the_specialized_decode_of_kimi_k3_is_uncovered_in_every_layer() -> None:
    model = in_layers(*map(runner, range(2)))
    model.specialized_decode_config = SimpleNamespace(q=1)
    found = reasons(model, kernel_config=SimpleNamespace(monokernel=False))
    assert sorted(found) == [0, 1]
    assert found[1].endswith("start vLLM without decode_backend=latency_specialized in --additional-config")


def test_the_specialized_decode_of_minimax_m3_is_uncovered_in_its_layers() -> None:
    model = in_layers(*map(runner, range(4)))
    model.model.specialized_decode_config = SimpleNamespace(first_layer=1, last_layer=2)
    found = reasons(model, kernel_config=SimpleNamespace(monokernel=True))
    assert sorted(found) == [1, 2]
    assert found[1].endswith("start vLLM without --monokernel")


def test_where_deepseek_v41_would_be_slower_that_is_said_and_a_setting_leaves_it_alone() -> None:
    model = v41(*map(runner, range(2)), specialized_decode_config=SimpleNamespace(autotune=True))
    observed = survey_model(model, config())
    assert len(observed.routed) == 2
    assert observed.slower is not None
    left = survey_model(model, config(), leave_fast_kernels=True)
    assert (left.routed, left.slower) == ((), None)
    assert [layer.layer for layer in left.uncovered] == [0, 1]
    assert left.uncovered[0].reason.startswith("MOESCOPE_LEAVE_FAST_KERNELS leaves it alone")


def test_the_setting_changes_nothing_for_a_model_without_such_kernels() -> None:
    assert len(survey_model(in_layers(runner(0)), config(), leave_fast_kernels=True).routed) == 1


class MuseLike(torch.nn.Module):
    """Stands for Muse Spark's block (vLLM 0.33), which asks this of itself before each forward pass."""

    def __init__(self, layer: int, prepares: Any) -> None:
        super().__init__()
        self.experts, self._prepares = runner(layer), prepares

    def _prepares_nvfp4_inputs(self, num_tokens: int) -> bool:
        return bool(self._prepares(num_tokens))


def test_blocks_that_prepare_routing_for_small_batches_are_uncovered() -> None:
    def fails(tokens: int) -> bool:
        raise RuntimeError(f"not for {tokens}")

    model = in_layers(
        MuseLike(0, lambda tokens: tokens <= 256), MuseLike(1, lambda _: False), MuseLike(2, fails), runner(3)
    )
    found = reasons(model)
    assert sorted(found) == [0, 2]
    assert "forward_prepared_nvfp4" in found[0]
    assert "muse_spark_tep_aux_stream_routing" in found[0]
    assert found[2] == "MuseLike can't be judged: RuntimeError('not for 1')"


class Small(torch.nn.Module):
    """Stands for Flint's kernel for small batches (vLLM 0.33)."""


def test_blocks_with_a_kernel_of_their_own_for_small_batches_are_uncovered() -> None:
    def flint(layer: int, kernel: torch.nn.Module | None) -> torch.nn.Module:
        made = torch.nn.Module()
        made.bf16_decode = None
        made.experts, made.bf16_decode = runner(layer), kernel
        return made

    found = reasons(in_layers(flint(0, Small()), flint(1, None)))
    assert sorted(found) == [0]
    assert found[0].startswith("small batches take Small, which routes inside")


def test_an_ordinary_model_has_no_bypass() -> None:
    found = find_bypasses(in_layers(runner(0), runner(1)), config())
    assert (found.found, found.slower) == ((), None)
