from __future__ import annotations

import os
import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from segment_anything import sam_model_registry
from segment_anything.modeling import Sam
from segment_anything.modeling.image_encoder import Attention

from ultrarefiner_monai.config import SamConfig
from ultrarefiner_monai.core.types import InputError, Prompts
from ultrarefiner_monai.models.sam import attention
from ultrarefiner_monai.models.sam.attention import InPlaceGelu, SdpaAttention
from ultrarefiner_monai.models.sam.network import (
    build_sam,
    decode,
    encode,
    load_into_sam,
    load_sam_state,
    normalise,
    save_sam,
)

TINY = SamConfig(
    arch="compact", image_size=64, embed_dim=32, depth=2, num_heads=2, window_size=3, global_attn_indexes=(1,)
)


@pytest.fixture(scope="module")
def sam() -> Sam:
    torch.manual_seed(0)
    sam = build_sam(TINY)
    with torch.no_grad():
        for parameter in sam.image_encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return sam


@pytest.fixture()
def embedding() -> torch.Tensor:
    return torch.randn(2, 256, 4, 4, generator=torch.Generator().manual_seed(1))


# --- attention and encoding -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entries", [2**22, 2600, 500, 1])
@pytest.mark.parametrize("table", [6, 4])
def test_sdpa_attention_equals_the_original(entries: int, table: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, by heads, by rows, with and without interpolated relative positions; values, gradients, no gradients."""
    monkeypatch.setattr(attention, "_BIAS_ENTRIES", entries)
    torch.manual_seed(2)
    original = Attention(24, num_heads=3, use_rel_pos=True, input_size=(table, table))
    torch.nn.init.normal_(original.rel_pos_h)
    torch.nn.init.normal_(original.rel_pos_w)
    ours = SdpaAttention(original)
    assert set(ours.state_dict()) == set(original.state_dict())
    x = torch.randn(2, 6, 6, 24)
    gradients = []
    for module in (original, ours):
        original.zero_grad()
        y = module(x)
        y.square().sum().backward()
        gradients.append((y.detach(), original.rel_pos_h.grad.clone(), original.qkv.weight.grad.clone()))
    for theirs, mine in zip(*gradients):
        assert torch.allclose(theirs, mine, atol=1e-4, rtol=1e-4)
    with torch.no_grad():
        assert torch.allclose(ours(x), gradients[0][0], atol=1e-5)


def test_gelu_in_place_spares_what_a_gradient_needs(sam: Sam) -> None:
    assert all(isinstance(block.mlp.act, InPlaceGelu) for block in sam.image_encoder.blocks)
    x = torch.randn(7)
    leaf = x.clone().requires_grad_()
    expected = torch.nn.functional.gelu(x)
    assert torch.equal(InPlaceGelu()(leaf), expected) and torch.equal(leaf, x)
    with torch.no_grad():
        assert InPlaceGelu()(x).data_ptr() == x.data_ptr() and torch.equal(x, expected)


def test_encoder_equals_segment_anythings_own(sam: Sam) -> None:
    image = torch.rand(2, 1, 64, 64)
    ours = encode(sam, image)
    for block in sam.image_encoder.blocks:
        own = block.attn
        plain = Attention(32, num_heads=2, use_rel_pos=True, input_size=((own.rel_pos_h.shape[0] + 1) // 2,) * 2)
        plain.load_state_dict(own.state_dict())
        block.attn = plain
    theirs = encode(sam, image)
    for block in sam.image_encoder.blocks:
        block.attn = SdpaAttention(block.attn)
    assert ours.shape == (2, 256, 4, 4)
    assert (ours - theirs).abs().max() < 1e-4


def test_normalise_is_segment_anythings(sam: Sam) -> None:
    image = torch.rand(1, 1, 64, 64)
    assert torch.allclose(
        normalise(image, sam.image_encoder), sam.preprocess(255 * image.expand(-1, 3, -1, -1)), atol=1e-5
    )


def test_frozen_encoder_keeps_no_graph_in_train_mode(sam: Sam) -> None:
    sam.train()
    sam.image_encoder.requires_grad_(False)
    try:
        assert not encode(sam, torch.rand(1, 1, 64, 64)).requires_grad
        assert encode(sam, torch.rand(1, 1, 64, 64, requires_grad=True)).requires_grad
        sam.image_encoder.neck[0].weight.requires_grad_(True)
        assert encode(sam, torch.rand(1, 1, 64, 64)).requires_grad
    finally:
        sam.requires_grad_(True)
        sam.eval()


def test_encode_refuses_other_sizes(sam: Sam) -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, 64, 64\), got \(1, 1, 64, 60\)"):
        encode(sam, torch.rand(1, 1, 64, 60))


# --- decoding ---------------------------------------------------------------------------------------------------------


def _theirs(sam: Sam, embedding: torch.Tensor, prompts: Prompts) -> tuple[torch.Tensor, torch.Tensor]:
    """segment_anything's own way: one image at a time through its prompt encoder and decoder."""
    masks, ious = [], []
    for i in range(len(embedding)):
        one = slice(i, i + 1)
        points = None if prompts.points_xy is None else (prompts.points_xy[one], prompts.point_labels[one])
        boxes = None if prompts.boxes_xyxy is None else prompts.boxes_xyxy[one]
        mask = None if prompts.mask_logits is None else prompts.mask_logits[one]
        sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=mask)
        out = sam.mask_decoder(embedding[one], sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
        masks.append(out[0])
        ious.append(out[1])
    return torch.cat(masks), torch.cat(ious)


POINTS = torch.tensor([[[10.0, 20.0], [30.5, 40.0]], [[5.0, 6.0], [0.0, 0.0]]])
LABELS = torch.tensor([[1, 0], [1, -1]])
BOXES = torch.tensor([[3.0, 4.0, 40.0, 50.0], [0.0, 0.0, 63.0, 63.0]])


@pytest.mark.parametrize(
    "prompts",
    [
        Prompts(),
        Prompts(points_xy=POINTS, point_labels=LABELS),
        Prompts(boxes_xyxy=BOXES),
        Prompts(points_xy=POINTS, point_labels=LABELS, boxes_xyxy=BOXES),
        Prompts(POINTS, LABELS, BOXES, torch.linspace(-5, 5, 512).reshape(2, 1, 16, 16)),
    ],
    ids=["nothing", "points", "boxes", "both", "all"],
)
def test_batched_decode_equals_one_by_one(sam: Sam, embedding: torch.Tensor, prompts: Prompts) -> None:
    with torch.no_grad():
        mask_logits, iou_pred = decode(sam, embedding, prompts)
        masks, ious = _theirs(sam, embedding, prompts)
    assert mask_logits.shape == (2, 3, 16, 16) and iou_pred.shape == (2, 3)
    assert torch.allclose(mask_logits, masks, atol=1e-4) and torch.allclose(iou_pred, ious, atol=1e-4)


def test_absent_box_and_mask_of_one_item_do_nothing_to_it(sam: Sam, embedding: torch.Tensor) -> None:
    absent = BOXES.clone()
    absent[1] = torch.tensor([0.0, 0.0, -1.0, -1.0])
    mask = torch.linspace(-5, 5, 512).reshape(2, 1, 16, 16).clone()
    mask[1] = 0
    with torch.no_grad():
        both = decode(sam, embedding, Prompts(boxes_xyxy=absent, mask_logits=mask))[0]
        first = decode(sam, embedding[:1], Prompts(boxes_xyxy=absent[:1], mask_logits=mask[:1]))[0]
        # Two padding tokens take the place of the corners.
        second = decode(sam, embedding[1:], Prompts(POINTS[1:, :1], torch.tensor([[-1]]), absent[1:], mask[1:]))[0]
        nothing = decode(sam, embedding[1:], Prompts())[0]
        moved = absent.clone()
        moved[1] = torch.tensor([50.0, 50.0, 3.0, 2.0])
        again = decode(sam, embedding, Prompts(boxes_xyxy=moved, mask_logits=mask))[0]
    assert torch.allclose(both[:1], first, atol=1e-4)
    assert torch.allclose(second, nothing, atol=1e-6)
    assert torch.equal(both[1], again[1])  # whatever stands where no box is


def test_one_embedding_serves_several_prompts(sam: Sam, embedding: torch.Tensor) -> None:
    with torch.no_grad():
        many = decode(sam, embedding[:1], Prompts(boxes_xyxy=BOXES))[0]
        each = [decode(sam, embedding[:1], Prompts(boxes_xyxy=BOXES[i : i + 1]))[0] for i in range(2)]
    assert torch.allclose(many, torch.cat(each), atol=1e-4)


def test_mask_prompt_of_another_size_is_refused(sam: Sam, embedding: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, 16, 16\), got \(2, 1, 8, 8\)"):
        decode(sam, embedding, Prompts(mask_logits=torch.ones(2, 1, 8, 8)))


# --- checkpoints ------------------------------------------------------------------------------------------------------


def to_ultrasam(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """SAM's keys -> UltraSam's (mmdetection's); the inverse of the map under test, written independently of it."""
    out: dict[str, torch.Tensor] = {}
    stacked = ["prompt_encoder.no_mask_embed"] + [f"prompt_encoder.point_embeddings.{i}" for i in range(4)]
    stacked += ["prompt_encoder.not_a_point_embed", "mask_decoder.mask_tokens", "mask_decoder.iou_token"]
    out["prompt_encoder.label_encoder.label_embedding.weight"] = torch.cat([state[f"{k}.weight"] for k in stacked])
    for key, value in state.items():
        if key.removesuffix(".weight") in stacked:
            continue
        if key.startswith("image_encoder."):
            key = "backbone." + key.removeprefix("image_encoder.")
            key = key.replace("backbone.blocks.", "backbone.layers.").replace(
                "patch_embed.proj.", "patch_embed.projection."
            )
            key = key.replace(".norm", ".ln").replace(".neck.", ".channel_reduction.")
            key = key.replace(".mlp.lin1.", ".ffn.layers.0.0.").replace(".mlp.lin2.", ".ffn.layers.1.")
        elif key.startswith("mask_decoder.transformer."):
            key = "decoder." + key.removeprefix("mask_decoder.transformer.")
            key = key.replace(".mlp.lin1.", ".mlp.layers.0.0.").replace(".mlp.lin2.", ".mlp.layers.1.")
            key = key.replace("norm_final_attn", "post_norm")
            if match := re.match(r"(.*)\.([qkv])_proj\.bias$", key):
                if match[2] == "q":
                    source = "mask_decoder.transformer." + match[1].removeprefix("decoder.")
                    biases = [state[f"{source}.{x}_proj.bias"] for x in "qkv"]
                    out[f"{match[1]}.attn.in_proj_bias"] = torch.cat(biases)
                continue
            key = re.sub(r"\.([qkv])_proj\.weight$", r".attn.\1_proj_weight", key)
            key = key.replace(".out_proj.", ".attn.out_proj.")
        elif key.startswith("mask_decoder."):
            key = "bbox_head." + key.removeprefix("mask_decoder.")
        out[key] = value
    return out


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


FORMS = {
    "plain": lambda s: s,
    "model": lambda s: {"model": s, "epoch": 7},
    "sam prefix": lambda s: {f"sam.{k}": v for k, v in s.items()},
    "module.sam prefix": lambda s: {"state_dict": {f"module.sam.{k}": v for k, v in s.items()}},
    "constants saved": lambda s: {**s, "pixel_mean": torch.zeros(3, 1, 1), "pixel_std": torch.ones(3, 1, 1)},
    "whole system": lambda s: {**{f"sam.{k}": v for k, v in s.items()}, "coarse.stem.weight": torch.zeros(2)},
    "ultrasam": lambda s: {"state_dict": to_ultrasam(s), "meta": {}},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_known_form_gives_plain_keys(sam: Sam, tmp_path: Path, form: str) -> None:
    state = dict(sam.state_dict())
    torch.save(FORMS[form](state), tmp_path / "w.pth")
    loaded = load_sam_state(tmp_path / "w.pth")
    assert _same(loaded, state)
    load_into_sam(build_sam(TINY), loaded)


def test_safetensors_in_half_precision_comes_back_as_float32(sam: Sam, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({k: v.half().contiguous() for k, v in sam.state_dict().items()}, str(tmp_path / "w.safetensors"))
    loaded = load_sam_state(tmp_path / "w.safetensors")
    assert all(v.dtype == torch.float32 for v in loaded.values())
    assert all(torch.equal(v, sam.state_dict()[k].half().float()) for k, v in loaded.items())


class _Logger:
    """Stands for a class of a training framework that lies beside the weights."""

    ran = False

    def __init__(self) -> None:
        self.history = [1.0]

    def __setstate__(self, state: dict) -> None:
        _Logger.ran = True


def test_foreign_classes_beside_the_weights_are_left_out_and_never_run(sam: Sam, tmp_path: Path) -> None:
    state = OrderedDict(to_ultrasam(dict(sam.state_dict())))
    torch.save({"state_dict": state, "message_hub": {"log": _Logger(), "fn": os.path.join}}, tmp_path / "w.pth")
    assert _same(load_sam_state(tmp_path / "w.pth"), dict(sam.state_dict()))
    assert not _Logger.ran


class _Bomb:
    def __reduce__(self) -> tuple:
        return os.mkdir, (_Bomb.target,)

    target = ""


def test_code_in_a_checkpoint_is_not_executed(tmp_path: Path) -> None:
    _Bomb.target = str(tmp_path / "boom")
    torch.save({"state_dict": _Bomb()}, tmp_path / "w.pth")
    with pytest.raises(InputError, match="w.pth"):
        load_sam_state(tmp_path / "w.pth")
    assert not (tmp_path / "boom").exists()


@pytest.mark.parametrize("content", [{"a.weight": torch.zeros(1)}, [1, 2], {"image_encoder.x": "text"}, {}])
def test_what_is_no_sam_checkpoint_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InputError, match="w.pth"):
        load_sam_state(tmp_path / "w.pth")


def test_missing_and_truncated_files_are_refused(sam: Sam, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no weights file"):
        load_sam_state(tmp_path / "none.pth")
    save_sam(sam, tmp_path / "w.pth")
    whole = (tmp_path / "w.pth").read_bytes()
    (tmp_path / "w.pth").write_bytes(whole[:1000])
    with pytest.raises(InputError, match="cannot be read"):
        load_sam_state(tmp_path / "w.pth")


def test_mismatch_says_which_keys_and_what_it_looks_like(sam: Sam) -> None:
    other = build_sam(replace(TINY, embed_dim=48, depth=3))
    with pytest.raises(
        InputError, match=r"compact \(32 wide, 2 blocks, 64 px\).*compact \(48 wide, 3 blocks.*blocks\.2\."
    ):
        load_into_sam(other, sam.state_dict())
    with pytest.raises(InputError, match="1 unexpected: mask_decoder.more"):
        load_into_sam(build_sam(TINY), {**sam.state_dict(), "mask_decoder.more": torch.zeros(1)})


def test_saving_leaves_no_partial_file_and_refuses_an_adapter(sam: Sam, tmp_path: Path) -> None:
    save_sam(sam, tmp_path / "w.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["w.pth"]
    adapted = build_sam(TINY)
    adapted.image_encoder.blocks[0].attn.qkv.lora_a = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match="lora_a"):
        save_sam(adapted, tmp_path / "x.pth")


def test_vit_b_goes_through_plain_segment_anything_and_back(tmp_path: Path) -> None:
    """An official-layout file in, ours out, into plain sam_model_registry: the same tensors, every key of it."""
    official = sam_model_registry["vit_b"]()
    torch.save(official.state_dict(), tmp_path / "official.pth")
    ours = build_sam(SamConfig(arch="vit_b"))
    load_into_sam(ours, load_sam_state(tmp_path / "official.pth"))
    save_sam(ours, tmp_path / "ours.pth")
    again = sam_model_registry["vit_b"](checkpoint=str(tmp_path / "ours.pth"))
    assert _same(dict(again.state_dict()), dict(official.state_dict()))
    assert sum(p.numel() for p in ours.parameters()) == 93_735_472
    if folder := os.environ.get("ULTRAREFINER_PARITY"):
        lines = (Path(folder) / "sam_vit_b_state_keys.txt").read_text().splitlines()
        wanted = dict(line.split("\t") for line in lines)
        assert {k: str(tuple(v.shape)) for k, v in ours.state_dict().items()} == wanted


@pytest.mark.parametrize("arch", ["vit_l", "vit_h"])
def test_large_architectures_have_segment_anythings_shapes(arch: str) -> None:
    with torch.device("meta"):
        theirs = {k: v.shape for k, v in sam_model_registry[arch]().state_dict().items()}
        ours = {k: v.shape for k, v in build_sam(SamConfig(arch=arch)).state_dict().items()}  # type: ignore[arg-type]
    assert ours == theirs
