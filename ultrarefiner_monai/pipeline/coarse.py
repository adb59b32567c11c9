"""What the coarse network says of one image: the mean over several views of it, and that in the sam frame."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import nn

from ultrarefiner_monai.config import PostConfig
from ultrarefiner_monai.core.cache import Arrays
from ultrarefiner_monai.core.geometry import Letterbox, resize
from ultrarefiner_monai.masks.postprocess import EIGHT

SUSPECT, FADE = 0.3, 0.3


def with_presence(network: nn.Module, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
    """image (B, 1, S, S) -> coarse_logits (B, 2, S, S), presence_logits (B,) or None from a network that has none."""
    if hasattr(network, "forward_with_presence"):
        return network.forward_with_presence(image)
    return network(image), None


@torch.inference_mode()
def coarse_arrays(
    network: nn.Module, image: torch.Tensor, letterbox: Letterbox, flip_tta: bool, scales: tuple[float, ...] = ()
) -> Arrays:
    """image (1, 1, S, S) in the coarse frame -> coarse_prob (S, S), 0 in the padding: the mean over all views.

    flip_tta: the mirror image is a view too (padded on the right and below like any other). scales: so are smaller
    copies of the image. With several views there is coarse_spread (S, S), the standard deviation between them. For a
    network with a presence logit there is presence (1,), the mean probability that the image shows a lesion.
    """
    columns = letterbox.inner_hw[1]
    upright = [image, _mirror(image, columns)] if flip_tta else [image]
    steps = [(scale, mirrored) for scale in (1.0, *scales) for mirrored in range(len(upright))]
    views = torch.cat([_shrink(upright[mirrored], scale) for scale, mirrored in steps])
    coarse_logits, presence = with_presence(network, views)
    probs = torch.softmax(coarse_logits.float(), dim=1)[:, 1]
    back = [_grow(prob, scale) for prob, (scale, _) in zip(probs, steps)]
    stack = torch.stack([_mirror(p, columns) if mirrored else p for p, (_, mirrored) in zip(back, steps)])
    arrays = {"coarse_prob": _without_padding(stack.mean(dim=0), letterbox).cpu().numpy()}
    if len(stack) > 1:
        arrays["coarse_spread"] = _without_padding(stack.std(dim=0, correction=0), letterbox).cpu().numpy()
    if presence is not None:
        arrays["presence"] = torch.sigmoid(presence.float()).mean(dim=0, keepdim=True).cpu().numpy()
    return arrays


def settle(arrays: Arrays, post: PostConfig) -> Arrays:
    """The arrays with those findings faded that are less sure than ``post.peak_ratio`` times the surest one.

    A finding is a connected part (8 neighbours) where the probability is above SUSPECT; its surest pixel speaks for it.
    Specks smaller than ``post.min_area`` set no bar. What fades still stands out, for a click to find.
    """
    if not post.peak_ratio:
        return arrays
    prob = arrays["coarse_prob"]
    labels, count = ndimage.label(prob > SUSPECT, EIGHT)
    if count < 2:
        return arrays
    index = np.arange(count + 1)
    peaks = ndimage.maximum(prob.astype(np.float32), labels, index)
    peaks[0] = 0
    large = np.bincount(labels.ravel(), minlength=count + 1) >= post.min_area * prob.size
    unsure = peaks < post.peak_ratio * peaks.max(where=large, initial=0.0)
    unsure[0] = False
    return {**arrays, "coarse_prob": np.where(unsure[labels], prob * prob.dtype.type(FADE), prob)}


def doubt(arrays: Arrays, post: PostConfig) -> tuple[Arrays, bool]:
    """The arrays as they are used, and whether the network holds a lesion for less likely than ``post.min_presence``.

    Then all probabilities are scaled down to below ``post.threshold``: nothing is marked, but what stands out still does,
    for a click to find.
    """
    presence = arrays.get("presence")
    if presence is None or presence[0] >= post.min_presence:
        return arrays, False
    factor = 0.8 * post.threshold
    return {k: v if k == "presence" else v * factor for k, v in arrays.items()}, True


def _shrink(x: torch.Tensor, scale: float) -> torch.Tensor:
    """(1, 1, S, S) -> the same frame with its content ``scale`` times as large, padded on the right and below."""
    side = round(scale * x.shape[-1])
    missing = x.shape[-1] - side
    return F.pad(resize(x, side, side), (0, missing, 0, missing)) if missing else x


def _grow(x: torch.Tensor, scale: float) -> torch.Tensor:
    """Undo ``_shrink`` on (S, S)."""
    side = round(scale * x.shape[-1])
    return x if side == x.shape[-1] else resize(x[None, None, :side, :side], *x.shape)[0, 0]


def _mirror(x: torch.Tensor, columns: int) -> torch.Tensor:
    """Mirror the first ``columns`` columns of (..., S), leave the padding where it is."""
    return torch.cat([x[..., :columns].flip(-1), x[..., columns:]], dim=-1)


def _without_padding(prob: torch.Tensor, letterbox: Letterbox) -> torch.Tensor:
    rows, columns = letterbox.inner_hw
    out = torch.zeros_like(prob)
    out[:rows, :columns] = prob[:rows, :columns]
    return out


def coarse_to_sam(coarse_prob: torch.Tensor, coarse_box: Letterbox, sam_box: Letterbox) -> torch.Tensor:
    """coarse_prob (B, 1, S, S) in the coarse frame -> (B, 1, S', S') in the sam frame, 0 in the padding."""
    rows, columns = coarse_box.inner_hw
    inner_rows, inner_columns = sam_box.inner_hw
    inner = resize(coarse_prob[..., :rows, :columns], inner_rows, inner_columns)
    return F.pad(inner, (0, sam_box.size - inner_columns, 0, sam_box.size - inner_rows))
