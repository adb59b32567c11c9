"""LoRA: untrained it changes nothing, merged it is exact, and what does not belong together is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from ultrarefiner_monai.config import ConfigError, LoraConfig, SamConfig, from_dict
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.adapter_file import merged_sam, read_adapter, sam_digest, with_adapter, write_adapter
from ultrarefiner_monai.models.lora import (
    adapter_state,
    inject,
    load_adapter,
    lora_parameters,
    merge,
    merged_copy,
    remove,
)
from ultrarefiner_monai.models.sam.network import build_sam, encode

VIT = SamConfig(arch="compact", image_size=64, embed_dim=16, depth=2, num_heads=2, global_attn_indexes=(1,))
LITE = SamConfig(arch="compact", encoder="lite0", image_size=64)
ENCODERS = pytest.mark.parametrize("sam", [VIT, LITE], ids=["vit", "cnn"])


def built(config: SamConfig, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_sam(config)


def trained(encoder: nn.Module, seed: int = 1) -> None:
    """Factors as they might be after a training."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for _, parameter in lora_parameters(encoder):
            parameter.add_(0.02 * torch.randn_like(parameter))


def image(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(seed))


@ENCODERS
def test_untrained_it_changes_nothing_and_merged_it_is_exact(sam: SamConfig) -> None:
    network = built(sam)
    keys, before = list(network.state_dict()), encode(network, image())
    inject(network.image_encoder, LoraConfig())
    assert torch.equal(encode(network, image()).detach(), before)
    trained(network.image_encoder)
    with_factors = encode(network, image()).detach()
    assert (with_factors - before).abs().max() > 1e-4 * before.abs().max()
    plain = merged_copy(network.image_encoder)
    assert torch.equal(encode(network, image()).detach(), with_factors), "the copy is merged, not the network"
    merge(network.image_encoder)
    merged = encode(network, image()).detach()
    assert (merged - with_factors).abs().max() < 1e-5 * with_factors.abs().max()
    assert list(network.state_dict()) == keys, "a plain network again"
    assert all(torch.equal(v, network.image_encoder.state_dict()[k]) for k, v in plain.state_dict().items())


@ENCODERS
def test_removed_the_encoder_is_what_it_was(sam: SamConfig) -> None:
    network = built(sam)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    inject(network.image_encoder, LoraConfig(rank=2))
    trained(network.image_encoder)
    remove(network.image_encoder)
    assert network.state_dict().keys() == before.keys()
    assert all(torch.equal(v, network.state_dict()[k]) for k, v in before.items())


@ENCODERS
def test_gradients_reach_the_factors_and_nothing_else_of_the_encoder(sam: SamConfig) -> None:
    network = built(sam)
    inject(network.image_encoder, LoraConfig(rank=2))
    trained(network.image_encoder)
    network.prompt_encoder.requires_grad_(False)
    network.mask_decoder.requires_grad_(False)
    encode(network, image()).square().sum().backward()
    reached = {name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {f"image_encoder.{name}" for name, _ in lora_parameters(network.image_encoder)} != set()


def test_the_formula_with_a_linear_layer_and_a_convolution() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mlp = nn.Module()
            self.mlp.lin1 = nn.Linear(5, 7)
            self.fine = nn.Conv2d(3, 4, 3, padding=1, stride=2)

    two = Two()
    weight, kernel = two.mlp.lin1.weight.clone(), two.fine.weight.clone()
    inject(two, LoraConfig(rank=3, alpha=6))
    trained(two)
    state = adapter_state(two)
    x = torch.randn(2, 5)
    expected = x @ (weight + 2 * state["mlp.lin1.lora_b"] @ state["mlp.lin1.lora_a"]).T + two.mlp.lin1.bias
    assert torch.allclose(two.mlp.lin1(x), expected, atol=1e-5)
    y = torch.randn(1, 3, 9, 7)
    delta = torch.einsum("or,rikl->oikl", state["fine.lora_b"][:, :, 0, 0], state["fine.lora_a"])
    expected = nn.functional.conv2d(y, kernel + 2 * delta, two.fine.bias, stride=2, padding=1)
    assert torch.allclose(two.fine(y), expected, atol=1e-5)


def test_dropout_acts_in_training_alone() -> None:
    network = built(VIT)
    inject(network.image_encoder, LoraConfig(dropout=0.5))
    trained(network.image_encoder)
    assert torch.equal(encode(network, image()), encode(network, image()))
    network.image_encoder.train()
    assert not torch.equal(encode(network, image()), encode(network, image()))


def test_targets_choose_layers() -> None:
    def layers(sam: SamConfig, *targets: str) -> set[str]:
        network = built(sam)
        inject(network.image_encoder, LoraConfig(targets=targets))  # type: ignore[arg-type]
        return {name.rpartition(".")[0] for name, _ in lora_parameters(network.image_encoder)}

    assert layers(VIT, "qkv") == {"blocks.0.attn.qkv", "blocks.1.attn.qkv"}
    assert layers(VIT, "proj") == {"blocks.0.attn.proj", "blocks.1.attn.proj"}, "not the patches' projection"
    assert layers(VIT, "mlp") == {f"blocks.{n}.mlp.lin{k}" for n in (0, 1) for k in (1, 2)}
    assert layers(LITE, "proj") == {"fine", "middle", "join", "mixers.0.out", "mixers.1.out"}
    assert all(name.endswith((".conv_pw", ".conv_pwl")) for name in layers(LITE, "mlp"))
    with pytest.raises(InputError, match="has no layer for qkv"):
        layers(LITE, "qkv")


def test_sizes_of_sams_own_encoders() -> None:
    """Rank 4 in all three: LoRA of the whole ViT-B is 1.3 MB in half precision."""
    with torch.device("meta"):
        encoder = build_sam(SamConfig()).image_encoder
        inject(encoder, LoraConfig())
    count = sum(p.numel() for _, p in lora_parameters(encoder))
    assert count == 12 * 4 * (768 + 3 * 768 + 768 + 768 + 2 * (768 + 4 * 768)) == 589_824


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rank": 0}, "rank"),
        ({"alpha": 0.0}, "alpha"),
        ({"dropout": 1.0}, "dropout"),
        ({"targets": []}, "targets"),
        ({"targets": ["q"]}, "targets"),
    ],
)
def test_impossible_options_are_refused_by_name(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_dict(LoraConfig, values)


def test_a_file_fits_its_base_alone(tmp_path: Path) -> None:
    network = built(VIT)
    base = copy.deepcopy(network)
    inject(network.image_encoder, LoraConfig(rank=2, alpha=4))
    assert sam_digest(network) == sam_digest(base), "of the weights under it"
    trained(network.image_encoder)
    path = write_adapter(tmp_path / "a" / "mine.safetensors", network, LoraConfig(rank=2, alpha=4), {"data": "x"})
    adapter = read_adapter(path)
    assert (adapter.config.rank, adapter.facts) == (2, {"data": "x"})
    served = with_adapter(base, adapter)
    assert torch.allclose(encode(served, image()), encode(network, image()).detach(), atol=1e-5)
    assert served.mask_decoder is base.mask_decoder and sam_digest(base) == adapter.base, "the base stays as it was"
    assert all(torch.equal(v, served.state_dict()[k]) for k, v in merged_sam(network).state_dict().items())
    with pytest.raises(InputError, match="fits only the weights"):
        with_adapter(built(VIT, seed=5), adapter)
    other = copy.deepcopy(base)
    with torch.no_grad():
        next(iter(other.mask_decoder.parameters())).add_(1e-3)
    with pytest.raises(InputError, match="fits only the weights"):
        with_adapter(other, adapter)


def test_what_is_no_adapter_or_of_another_rank_is_refused(tmp_path: Path) -> None:
    network = built(VIT)
    inject(network.image_encoder, LoraConfig(rank=2))
    state = adapter_state(network.image_encoder)
    other = built(VIT)
    inject(other.image_encoder, LoraConfig(rank=3))
    with pytest.raises(InputError, match=r"of another shape: .*lora_a \(2, 16\) instead of \(3, 16\)"):
        load_adapter(other.image_encoder, state)
    with pytest.raises(InputError, match="missing"):
        load_adapter(network.image_encoder, dict(list(state.items())[1:]))
    with pytest.raises(InputError, match="unexpected"):
        load_adapter(network.image_encoder, {**state, "x.lora_a": torch.zeros(1)})
    with pytest.raises(InputError, match="already"):
        inject(network.image_encoder, LoraConfig())
    path = write_adapter(tmp_path / "a.safetensors", network, LoraConfig(rank=2))
    whole = path.read_bytes()
    for content in (b"", whole[:100], whole[:-10], b"x" * 500):
        path.write_bytes(content)
        with pytest.raises(InputError, match="adapter"):
            read_adapter(path)
    write_adapter(path, network, LoraConfig(rank=10**6))
    with pytest.raises(InputError, match="not of rank 1000000"):
        read_adapter(path)
    with torch.no_grad():
        next(lora_parameters(network.image_encoder))[1].fill_(float("nan"))
    write_adapter(path, network, LoraConfig(rank=2))
    with pytest.raises(InputError, match="not finite"):
        read_adapter(path)
    with pytest.raises(InputError, match="there is no adapter"):
        read_adapter(tmp_path / "none.safetensors")
