import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Conv2dSame
from torch import nn

from ultrarefiner_monai.models.depthwise import DepthwiseConv, quicken_depthwise


def _gradients(conv: nn.Module, x: torch.Tensor, mixed: bool) -> tuple[torch.Tensor, ...]:
    x = x.clone().requires_grad_(True)
    conv.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
        y = conv(x)
    weights = torch.linspace(-1, 1, y.numel()).view_as(y)
    (y.float() * weights).sum().backward()
    assert x.grad is not None and conv.weight.grad is not None
    return y.detach().float(), x.grad, conv.weight.grad


def _relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm().clamp(min=1e-12))


@settings(max_examples=25, deadline=None)
@given(
    size=st.sampled_from([3, 5]),
    stride=st.sampled_from([1, 2]),
    rows=st.integers(6, 17),
    columns=st.integers(6, 17),
    same=st.booleans(),
    channels_last=st.booleans(),
)
def test_mixed_precision_gradients_are_those_of_full_precision(
    size: int, stride: int, rows: int, columns: int, same: bool, channels_last: bool
) -> None:
    kind, padding = (Conv2dSame, 0) if same else (nn.Conv2d, size // 2)
    conv = kind(16, 16, size, stride, padding, groups=16, bias=False)
    x = torch.randn(3, 16, rows, columns)
    if channels_last:
        x = x.contiguous(memory_format=torch.channels_last)
    exact, mixed = _gradients(conv, x, False), _gradients(DepthwiseConv(conv), x, True)
    for name, want, got in zip(("result", "for x", "for the weight"), exact, mixed, strict=True):
        assert got.shape == want.shape and got.dtype == torch.float32
        assert _relative(got, want) < 0.02, name


@pytest.mark.parametrize("stem", ["lite0", "lite2"])
def test_the_stems_keys_and_results_stay(stem: str) -> None:
    plain = timm.create_model(f"tf_efficientnet_{stem}", pretrained=False, features_only=True).eval()
    x, keys = torch.rand(1, 3, 64, 96), list(plain.state_dict())
    with torch.no_grad():
        before = plain(x)
        quick = quicken_depthwise(plain)
        assert sum(isinstance(m, DepthwiseConv) for m in quick.modules()) > 10
        assert all(torch.equal(a, b) for a, b in zip(before, quick(x), strict=True))
    assert list(quick.state_dict()) == keys


def test_other_convolutions_are_left_alone() -> None:
    others = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=4),
        nn.Conv2d(4, 4, 3),
        nn.Conv2d(4, 4, 3, groups=4),  # with a bias
        nn.Conv2d(4, 4, 3, dilation=2, groups=4, bias=False),
        nn.Conv2d(4, 4, (1, 3), groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=(0, 1), groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=3, groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding="same", groups=4, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect", groups=4, bias=False),
    )
    quicken_depthwise(others)
    assert all(type(m) is nn.Conv2d for m in others)
    once = quicken_depthwise(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False)))
    assert quicken_depthwise(once)[0] is once[0] and isinstance(once[0], DepthwiseConv)


def test_nothing_is_computed_for_what_stands_still() -> None:
    conv = DepthwiseConv(nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False))
    conv.weight.requires_grad_(False)
    x = torch.randn(1, 8, 9, 9, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        conv(x).sum().backward()
    assert conv.weight.grad is None
    want = F.conv2d(torch.ones(1, 8, 9, 9), conv.weight.flip(2, 3), padding=2, groups=8)
    assert x.grad is not None and _relative(x.grad, want) < 0.02
