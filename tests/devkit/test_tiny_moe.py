import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from devkit.tiny_moe import Shape, ensure_checkpoint, make_checkpoint


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("model"))


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_same_seed_makes_the_same_bytes_and_another_seed_does_not(checkpoint: Path, tmp_path: Path) -> None:
    assert digests(make_checkpoint(tmp_path / "again")) == digests(checkpoint)
    other = digests(make_checkpoint(tmp_path / "other", seed=1))
    assert other["model.safetensors"] != digests(checkpoint)["model.safetensors"]


def test_checkpoint_is_remade_only_when_it_is_of_another_shape(tmp_path: Path) -> None:
    ensure_checkpoint(tmp_path)
    weights = tmp_path / "model.safetensors"
    first = weights.stat().st_mtime_ns
    ensure_checkpoint(tmp_path)
    assert weights.stat().st_mtime_ns == first
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_experts": 8}))
    ensure_checkpoint(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == config


def test_the_dense_layer_has_no_router_and_every_other_layer_has(checkpoint: Path) -> None:
    names = load_file(checkpoint / "model.safetensors").keys()
    routers = {int(name.split(".")[2]) for name in names if name.endswith("mlp.gate.weight")}
    assert routers == set(Shape().moe_layers) == {1, 2, 3, 4}
    assert "model.layers.0.mlp.gate_proj.weight" in names


@pytest.mark.parametrize("layer", Shape().moe_layers)
def test_expert_load_is_skewed_towards_the_layer_s_hottest_expert(checkpoint: Path, layer: int) -> None:
    shape = Shape()
    tensors = load_file(checkpoint / "model.safetensors")
    states = tensors["model.embed_tokens.weight"]
    states = states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True))
    logits = states @ tensors[f"model.layers.{layer}.mlp.gate.weight"].T
    counts = torch.bincount(logits.topk(shape.top_k).indices.flatten(), minlength=shape.experts)
    counts = counts.roll(-shape.hottest_expert(layer))
    hot, cold = counts[: shape.experts // 2].sum(), counts[shape.experts // 2 :].sum()
    assert hot > 2 * cold
    assert counts.max() > 2 * counts.float().mean()
    assert counts.max() < len(states), "some tokens choose others, or there is nothing to observe"


def test_every_byte_is_a_token(checkpoint: Path) -> None:
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    text = "Plain text,\n\ttabs, ümläute, 漢字 \U0001f600\0"
    ids = tokenizer.encode(text).ids
    assert ids == list(text.encode())
    assert tokenizer.decode(ids) == text


def test_only_printable_tokens_can_be_generated(checkpoint: Path) -> None:
    head = load_file(checkpoint / "model.safetensors")["lm_head.weight"]
    assert [token for token, row in enumerate(head) if row.any()] == list(range(32, 127))
