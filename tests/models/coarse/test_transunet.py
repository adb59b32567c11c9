from __future__ import annotations

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ultrarefiner_monai.config import CoarseConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.coarse.transunet import ResidualUnit, StdConv2d, TransUNet, build_transunet
from ultrarefiner_monai.models.coarse.transunet_weights import load_npz, load_pth, to_npz_arrays

TINY = CoarseConfig(
    image_size=64, hidden_size=24, num_layers=2, num_heads=3, mlp_dim=32, decoder_channels=(16, 8, 8, 4)
)
PARITY = os.environ.get("ULTRAREFINER_PARITY")
needs_parity = pytest.mark.skipif(
    not PARITY, reason="ULTRAREFINER_PARITY (folder with the reference outputs) is not set"
)


@pytest.fixture(scope="module")
def tiny() -> TransUNet:
    torch.manual_seed(0)
    model = build_transunet(config=TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def test_output_has_the_input_size_for_even_and_odd_inner_grids(tiny: TransUNet) -> None:
    with torch.no_grad():
        assert tiny(torch.rand(2, 1, 64, 64)).shape == (2, 2, 64, 64)
        other = build_transunet(config=replace(TINY, image_size=48)).eval()
        assert other(torch.rand(1, 1, 48, 48)).shape == (1, 2, 48, 48)


@pytest.mark.parametrize("shape", [(1, 1, 64, 48), (1, 3, 64, 64), (1, 1, 224, 224), (64, 64)])
def test_other_sizes_are_refused_with_both_sizes(tiny: TransUNet, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, 64, 64\), got"):
        tiny(torch.rand(shape))


def test_std_conv_standardises_each_kernel_with_biased_variance() -> None:
    conv = StdConv2d(1, 1, 2, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    # Mean 2.5, biased variance 1.25: (4 - 2.5) / sqrt(1.25) = 1.34164.
    picked = conv(torch.tensor([[[[0.0, 0.0], [0.0, 1.0]]]]))
    assert picked.item() == pytest.approx(1.34164, abs=1e-4)


def test_norms_have_the_published_groups_and_eps() -> None:
    unit = ResidualUnit(64, 256, 1)
    assert (unit.gn1.num_groups, unit.gn1.eps) == (32, 1e-6)
    assert (unit.gn_proj.num_groups, unit.gn_proj.eps) == (256, 1e-5)


def _write_npz(path: Path, arrays: dict[str, np.ndarray]) -> Path:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return path


def test_npz_round_trip_restores_stem_and_encoder_and_leaves_the_decoder(tiny: TransUNet, tmp_path: Path) -> None:
    path = _write_npz(tmp_path / "w.npz", to_npz_arrays(tiny))
    other = build_transunet(config=TINY).eval()
    before = {k: v.clone() for k, v in other.state_dict().items()}
    load_npz(other, path)
    for key, value in other.state_dict().items():
        source = tiny.state_dict() if key.startswith("transformer.") else before
        assert torch.equal(value, source[key]), key


def test_npz_positions_are_resized_to_another_grid(tiny: TransUNet, tmp_path: Path) -> None:
    arrays = to_npz_arrays(tiny)
    key = "Transformer/posembed_input/pos_embedding"
    ramp = np.arange(9, dtype=np.float32).reshape(3, 3)
    arrays[key] = np.concatenate([np.full((1, 1, 24), 99.0), np.repeat(ramp.reshape(1, 9, 1), 24, axis=2)], axis=1)
    load_npz(tiny, _write_npz(tmp_path / "w.npz", arrays))
    grid = tiny.transformer.embeddings.position_embeddings.detach()[0, :, 0].reshape(4, 4)
    assert grid[0, 0] == 0 and grid[-1, -1] == 8  # corners on corners, and no trace of the class token's 99
    assert torch.allclose(grid[0], torch.linspace(0, 2, 4))


def test_npz_with_missing_and_unexpected_arrays_is_refused_by_name(tiny: TransUNet, tmp_path: Path) -> None:
    arrays = to_npz_arrays(tiny)
    del arrays["gn_root/scale"]
    arrays["head/kernel"] = np.zeros(3)
    with pytest.raises(InputError, match=r"1 missing: gn_root/scale; 1 unexpected: head/kernel"):
        load_npz(tiny, _write_npz(tmp_path / "w.npz", arrays))


def test_npz_that_would_unpickle_is_refused(tiny: TransUNet, tmp_path: Path) -> None:
    path = _write_npz(tmp_path / "w.npz", {"a": np.array([{"x": 1}], dtype=object)})
    with pytest.raises(InputError, match="cannot be read"):
        load_npz(tiny, path)


@pytest.mark.parametrize("form", ["plain", "module", "wrapped"])
def test_pth_loads_in_each_form(tiny: TransUNet, tmp_path: Path, form: str) -> None:
    state = dict(tiny.state_dict())
    if form != "plain":
        state = {f"module.{k}": v for k, v in state.items()}
    torch.save({"state_dict": state, "epoch": 3} if form == "wrapped" else state, tmp_path / "m.pth")
    other = build_transunet(config=TINY)
    load_pth(other, tmp_path / "m.pth")
    assert all(torch.equal(v, tiny.state_dict()[k]) for k, v in other.state_dict().items())


def test_pth_of_another_size_names_the_key(tiny: TransUNet, tmp_path: Path) -> None:
    torch.save(tiny.state_dict(), tmp_path / "m.pth")
    with pytest.raises(InputError, match="position_embeddings.*instead of"):
        load_pth(build_transunet(config=replace(TINY, image_size=48)), tmp_path / "m.pth")


def test_what_is_no_tensor_is_named(tiny: TransUNet, tmp_path: Path) -> None:
    torch.save({**tiny.state_dict(), "epoch": 3}, tmp_path / "m.pth")
    with pytest.raises(InputError, match="these are none: epoch"):
        load_pth(tiny, tmp_path / "m.pth")


def test_truncated_pth_is_an_input_error(tiny: TransUNet, tmp_path: Path) -> None:
    torch.save(tiny.state_dict(), tmp_path / "m.pth")
    whole = (tmp_path / "m.pth").read_bytes()
    (tmp_path / "m.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        load_pth(tiny, tmp_path / "m.pth")


def test_gradients_reach_stem_and_positions(tiny: TransUNet) -> None:
    tiny.zero_grad()
    tiny(torch.rand(1, 1, 64, 64))[:, 1].sum().backward()
    for parameter in (
        tiny.transformer.embeddings.hybrid_model.root.conv.weight,
        tiny.transformer.embeddings.position_embeddings,
    ):
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 0


@needs_parity
def test_parity_with_the_public_implementation() -> None:
    folder = Path(str(PARITY))
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    assert spec is not None and spec.loader is not None
    fill = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fill)
    state = fill.fill_state(folder / "transunet_r50_vit_b16_state_keys.txt")
    model = build_transunet("r50_vit_b16", image_size=224, num_classes=2).eval()
    assert list(model.state_dict()) == list(state)
    assert sum(p.numel() for p in model.parameters()) == 105_276_066
    model.load_state_dict(state)
    reference = np.load(folder / "transunet_parity.npz")
    with torch.no_grad():
        logits = model(torch.from_numpy(reference["x"])).numpy()
    assert np.abs(logits - reference["logits"]).max() < 1e-3
    names = dict(line.split("\t") for line in (folder / "r50_vit_b16_npz_keys.txt").read_text().splitlines())
    assert {k: str(v.shape) for k, v in to_npz_arrays(model).items()} == names
