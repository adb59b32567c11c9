"""SAM 3's vision tower, tiny and random: its two layouts of weights, its shapes, and what is said where it cannot be."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tiny_sam3 import SMALL, TINY, tower
from torch import nn

from ultrarefiner_monai.config import ConfigError, LoraConfig, SamConfig, SystemConfig, TowerConfig, from_dict, to_dict
from ultrarefiner_monai.core.types import InputError, Prompts
from ultrarefiner_monai.models.lora import inject, lora_parameters, merged_copy
from ultrarefiner_monai.models.sam.network import build_sam, decode, encode
from ultrarefiner_monai.models.sam.sam3 import Sam3Encoder, load_tower, tower_state


def meta_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors as Meta's file has them: fused queries, keys and values, a class token's position, four levels, other parts."""
    trunk = "detector.backbone.vision_backbone.trunk."
    out = {
        "detector.backbone.language_backbone.encoder.ln_final.weight": torch.ones(3),
        "tracker.maskmem_tpos_enc": torch.ones(3),
        f"{trunk}blocks.0.attn.freqs_cis": torch.ones(2, dtype=torch.complex64),
    }
    for name, value in state.items():
        part = name.split(".")
        if name == "backbone.embeddings.position_embeddings":
            out[f"{trunk}pos_embed"] = torch.cat([torch.full_like(value[:, :1], 9.0), value], dim=1)
        elif "patch_embeddings" in name:
            out[f"{trunk}patch_embed.proj.weight"] = value
        elif name.startswith("backbone.layer_norm."):
            out[f"{trunk}ln_pre.{part[-1]}"] = value
        elif name.startswith("neck"):
            kernel = {"proj1": "conv_1x1", "proj2": "conv_3x3"}[part[3]]
            for level in range(4):
                key = f"detector.backbone.vision_backbone.convs.{level}.{kernel}.{part[-1]}"
                out[key] = value if level == 2 else value + 1
        elif ".attention." in name:
            block = f"{trunk}blocks.{part[2]}.attn"
            if part[4] == "o_proj":
                out[f"{block}.proj.{part[-1]}"] = value
            elif part[4] == "q_proj":
                names = [name.replace("q_proj", f"{x}_proj") for x in "qkv"]
                out[f"{block}.qkv.{part[-1]}"] = torch.cat([state[n] for n in names])
        elif ".mlp." in name:
            out[f"{trunk}blocks.{part[2]}.{'.'.join(part[3:])}"] = value
        elif ".layer_norm" in name:
            out[f"{trunk}blocks.{part[2]}.norm{part[3][-1]}.{part[-1]}"] = value
    return out


def hugging_face_layout(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    root = "detector_model.vision_encoder."
    out = {
        "detector_model.text_encoder.text_model.final_layer_norm.weight": torch.ones(3),
        "tracker_neck.x": torch.ones(1),
    }
    for name, value in state.items():
        if name.startswith("neck."):
            for level in range(4):
                new = name.replace("layers.0", f"layers.{level}")
                out[root + new] = value if level == 2 else value + 1
        else:
            out[root + name] = value
    return out


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", "folder"])
def test_both_layouts_of_weights_load(tmp_path: Path, suffix: str) -> None:
    source, target = build_sam(SMALL), build_sam(SMALL)
    state = {k: v.contiguous() for k, v in tower(source).state_dict().items()}
    path = tmp_path / f"sam3{suffix}"
    if suffix == ".pt":
        torch.save({"model": meta_layout(state)}, path)
    elif suffix == "folder":
        path.mkdir()
        save_file(hugging_face_layout(state), path / "model.safetensors")
    else:
        save_file({k: v.clone() for k, v in state.items()}, path)
    image = torch.rand(1, 1, 112, 112)
    assert not torch.allclose(encode(source, image), encode(target, image))
    load_tower(target.image_encoder, path)
    assert torch.equal(encode(source, image), encode(target, image))


def test_shapes_at_its_own_grid() -> None:
    sam = build_sam(SMALL)
    embedding = encode(sam, torch.rand(2, 1, 112, 112))
    assert embedding.shape == (2, 256, 8, 8)
    points = Prompts(points_xy=torch.tensor([[[50.0, 60.0]]] * 2), point_labels=torch.ones(2, 1, dtype=torch.long))
    masks, iou = decode(sam, embedding, points)
    assert masks.shape == (2, 3, 32, 32) and iou.shape == (2, 3)
    with pytest.raises(ValueError, match="112, 112"):
        encode(sam, torch.rand(1, 1, 128, 128))


def test_the_image_is_normalised_as_sam_3_wants_it() -> None:
    seen: list[torch.Tensor] = []

    class Backbone(nn.Module):
        def forward_image(self, image: torch.Tensor) -> torch.Tensor:
            seen.append(image)
            return image.new_zeros(len(image), 256, 8, 8)

    sam = build_sam(SMALL)
    sam.image_encoder.backbone = Backbone()  # type: ignore[assignment]
    image = torch.rand(1, 1, 112, 112)
    encode(sam, image)
    assert torch.allclose(seen[0], ((image - 0.5) / 0.5).expand(-1, 3, -1, -1), atol=1e-5)


@pytest.mark.parametrize("how", ["vision_features", "image_embeddings", "tensor", "tokens"])
@pytest.mark.parametrize("channels", [256, 24])
def test_each_form_of_features_is_understood(how: str, channels: int) -> None:
    maps = torch.rand(2, channels, 8, 8)
    tokens = maps.flatten(2).transpose(1, 2)
    answer: Any = {"tensor": maps, "tokens": tokens}.get(how, {how: maps, "vision_pos_enc": [maps]})

    class Backbone(nn.Module):
        def forward_image(self, image: torch.Tensor) -> Any:
            return answer

    encoder = Sam3Encoder(Backbone(), 112, channels)
    out = encoder(torch.rand(2, 3, 112, 112))
    assert out.shape == (2, 256, 8, 8) and torch.allclose(out, encoder.project(maps))


@pytest.mark.parametrize(
    "answer", [{"boxes": torch.zeros(1)}, "no tensor", torch.zeros(1, 256, 4, 4), torch.zeros(1, 63, 256), {}]
)
def test_other_features_are_refused(answer: Any) -> None:
    class Backbone(nn.Module):
        def forward_image(self, image: torch.Tensor) -> Any:
            return answer

    with pytest.raises(ValueError, match="SAM 3's backbone gave"):
        Sam3Encoder(Backbone(), 112)(torch.rand(1, 3, 112, 112))


def test_lora_reaches_the_tower_and_merges() -> None:
    encoder = build_sam(SMALL).image_encoder
    inject(encoder, LoraConfig(rank=2, alpha=4.0))
    names = {n for n, _ in lora_parameters(encoder)}
    for layer in ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2"):
        assert f"backbone.tower.backbone.layers.1.{layer}.lora_a" in names
    with torch.no_grad():
        for _, value in lora_parameters(encoder):
            value.normal_(std=0.1)
    image = torch.rand(1, 3, 112, 112)
    assert torch.allclose(encoder(image), merged_copy(encoder)(image), atol=1e-5)


def test_what_is_no_sam_3_is_refused(tmp_path: Path) -> None:
    encoder = build_sam(SMALL).image_encoder
    with pytest.raises(InputError, match="no SAM 3 weights at"):
        load_tower(encoder, tmp_path / "sam3.pt")
    torch.save({"image_encoder.pos_embed": torch.zeros(1)}, tmp_path / "sam.pt")
    with pytest.raises(InputError, match=r"no vision tower of SAM 3.*image_encoder.pos_embed"):
        load_tower(encoder, tmp_path / "sam.pt")
    wide = build_sam(SamConfig(arch="sam3", image_size=112, tower=TowerConfig(**{**to_dict(TINY), "depth": 3})))
    torch.save(tower(wide).state_dict(), tmp_path / "other.pt")
    with pytest.raises(InputError, match="other sizes than system.sam.tower"):
        load_tower(encoder, tmp_path / "other.pt")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"ultrarefiner_monai\[sam3\]"):
        build_sam(SMALL)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"arch": "sam3"}, r"multiple of 14.*1008.*got 1024"),
        ({"arch": "sam3", "image_size": 1008, "tower": {"heads": 0}}, "sam.tower.heads"),
        ({"arch": "sam3", "image_size": 1008, "tower": {"width": 30}}, "divisible"),
        ({"arch": "vit_b", "tower": {}}, "sam.tower is for"),
    ],
)
def test_impossible_sizes_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_dict(SystemConfig, {"sam": values})


def test_meta_names_cover_the_whole_tower() -> None:
    state = tower(build_sam(SMALL)).state_dict()
    assert tower_state(meta_layout(state), "x").keys() == state.keys()


def test_proposed_points_reach_every_corner() -> None:
    from ultrarefiner_monai.config import PpnConfig
    from ultrarefiner_monai.models.checkpoints import build_points

    config = SystemConfig(sam=SMALL, ppn=PpnConfig(points=2, width=16, blocks=1))
    points = build_points(config)
    embedding = torch.rand(1, 256, 8, 8)
    assert torch.allclose(points(embedding, [(112, 112)]).xy, points(embedding).xy), "the whole frame is image"
    assert points(embedding, [(56, 112)]).xy[..., 1].max() <= 0.5


def test_quick_learning_s_labels_have_the_decoder_s_size() -> None:
    from ultrarefiner_monai.learning.quick.samples import small_label

    assert SMALL.mask_size == 32 and SamConfig("compact", 512).mask_size == 128
    assert small_label(torch.ones(50, 70).numpy(), SMALL.image_size, SMALL.mask_size).shape == (32, 32)


def test_all_of_the_image_counts_where_boxes_teach() -> None:
    from ultrarefiner_monai.training.phases.weak import covered, learning

    like = torch.zeros(1, 1, 32, 32)
    assert covered([(112, 112)], like, 112).all() and covered([(56, 112)], like, 112)[0, 0].sum() == 16 * 32
    assert torch.equal(
        covered([(30, 64)], torch.zeros(1, 1, 16, 16), 64), covered([(30, 64)], torch.zeros(1, 1, 16, 16), 64)
    )
    encoder = build_sam(SMALL).image_encoder.requires_grad_(False)
    learning(encoder, 1)
    taught = {n for n, p in encoder.named_parameters() if p.requires_grad}
    assert taught and all(".layers.1." in n or ".neck." in n for n in taught)
    with pytest.raises(InputError, match="has 2 blocks"):
        learning(encoder, 3)


def test_a_projection_always_learns() -> None:
    from ultrarefiner_monai.models.refiner import Refiner
    from ultrarefiner_monai.training.phases.networks import set_trainable

    narrow = SamConfig(arch="sam3", image_size=112, tower=TowerConfig(**{**to_dict(TINY), "channels": 24}))
    refiner = Refiner(build_sam(narrow), SystemConfig(sam=narrow))
    set_trainable(refiner, ("mask_decoder",))
    learns = {n for n, p in refiner.sam.image_encoder.named_parameters() if p.requires_grad}
    assert learns == {"project.weight", "project.bias"}
