"""The refiner: coarse_prob and prompts (derived or the user's) -> SAM -> refined_prob; differentiable end to end."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import nn

from ultrarefiner_monai.config import GateConfig, SystemConfig
from ultrarefiner_monai.core.geometry import resize
from ultrarefiner_monai.core.types import Prompts, RefinerOutput
from ultrarefiner_monai.models.prompts.derive import derive_mask_prompt, derive_prompts
from ultrarefiner_monai.models.prompts.moments import ValidHW
from ultrarefiner_monai.models.roi import Roi, find_roi
from ultrarefiner_monai.models.sam.network import at_least_single, decode, encode
from ultrarefiner_monai.models.views import ViewEmbedding

# Beyond what a mask prompt itself says ((2 p - 1) * 10), so that a click differs from a confident mask.
DISC = 15.0


class _Frame(NamedTuple):
    """What the decoder works on: the sam frame itself, or (with ``roi``) the square cut out of it."""

    embedding: torch.Tensor
    coarse_prob: torch.Tensor
    valid_hw: ValidHW
    roi: Roi | None


class _Decoded(NamedTuple):
    """One pass of the decoder, in the frame it works on. mixed: (B, 1, M, M), the three masks' logits as one."""

    mixed: torch.Tensor
    mask_logits: torch.Tensor
    iou_pred: torch.Tensor
    prompts: Prompts


class Refiner(nn.Module):
    """SAM on top of the coarse prediction. S: side of the sam frame, E = S / 16 (SAM 3: S / 14), M = 4 E. All is in the sam frame.

    A user's points are a set: they are sorted, without duplicates, so that their order cannot change a bit.
    """

    def __init__(self, sam: Sam, config: SystemConfig) -> None:
        super().__init__()
        self.sam = sam
        self.config = config
        self.gate = Gate(config.gate)
        self.views = ViewEmbedding(config.views)

    @property
    def image_size(self) -> int:
        return self.sam.image_encoder.img_size

    def embed(self, image: torch.Tensor) -> torch.Tensor:
        """image (B, 1, S, S) in [0, 1], sam frame -> image_embedding (B, 256, E, E). In ROI mode it is not needed."""
        return encode(self.sam, image)

    def forward(
        self,
        image_embedding: torch.Tensor | None,
        coarse_prob: torch.Tensor,
        prompts: Prompts | None = None,
        image: torch.Tensor | None = None,
        valid_hw: ValidHW = None,
    ) -> RefinerOutput:
        """One pass of the decoder.

        image_embedding: (B, 256, E, E); not used in ROI mode, which needs ``image`` (B, 1, S, S) in [0, 1].
        coarse_prob: (B, 1, S, S) in [0, 1]. prompts: the user's; points or a box replace the derived points and box,
        the mask prompt stays (unless mask_logits are given too). None: all are derived. valid_hw: see ``derive_prompts``.
        """
        frame = self._frame(image_embedding, coarse_prob, prompts, image, valid_hw)
        return self._output(frame, self._decode(frame, self._prompts(frame, prompts)), coarse_prob)

    def interactive(
        self,
        image_embedding: torch.Tensor | None,
        coarse_prob: torch.Tensor,
        prompts: Prompts,
        image: torch.Tensor | None = None,
        valid_hw: ValidHW = None,
        tokens: torch.Tensor | None = None,
    ) -> RefinerOutput:
        """Two passes: all prompts with the coarse mask, then the same with the first pass's logits as mask. The output is
        the second one's; ``first_logits`` are there for a loss of the first. tokens: (B, T, 256) that stand for points and
        box, through which a gradient may go where they were proposed."""
        frame = self._frame(image_embedding, coarse_prob, prompts, image, valid_hw)
        given = self._prompts(frame, prompts)
        first = self._decode(frame, given, tokens)
        second = self._decode(frame, self._with_discs(replace(given, mask_logits=first.mixed)), tokens)
        first_logits = first.mixed if frame.roi is None else frame.roi.paste_logits(first.mixed, coarse_prob)
        return replace(self._output(frame, second, coarse_prob), first_logits=first_logits)

    def final_prob(self, coarse_prob: torch.Tensor, refined_prob: torch.Tensor) -> torch.Tensor:
        """coarse_prob + g (refined_prob - coarse_prob), (B, 1, S, S). Only for results without a user's prompt."""
        return self.gate(coarse_prob, refined_prob)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _frame(
        self,
        image_embedding: torch.Tensor | None,
        coarse_prob: torch.Tensor,
        prompts: Prompts | None,
        image: torch.Tensor | None,
        valid_hw: ValidHW,
    ) -> _Frame:
        side = self.image_size
        if coarse_prob.ndim != 4 or tuple(coarse_prob.shape[1:]) != (1, side, side):
            raise ValueError(f"coarse_prob must be (B, 1, {side}, {side}), got {tuple(coarse_prob.shape)}")
        if not self.config.refiner.roi:
            if image_embedding is None:
                raise ValueError("image_embedding is needed: Refiner.embed(image) makes it")
            return _Frame(image_embedding, coarse_prob, valid_hw, None)
        if image is None:
            raise ValueError("refiner.roi cuts the region out of the image: image (B, 1, S, S) is needed")
        with torch.autocast(coarse_prob.device.type, enabled=False):
            roi = find_roi(at_least_single(coarse_prob), prompts, self.config, valid_hw)
        return _Frame(self.embed(roi.crop(image)), roi.crop(coarse_prob), roi.valid_inside(valid_hw), roi)

    def _prompts(self, frame: _Frame, prompts: Prompts | None) -> Prompts:
        """The decoder's prompts, in the frame it works on; exact in mixed precision too, which has no pixel beyond 256."""
        with torch.autocast(frame.coarse_prob.device.type, enabled=False):
            return self._exact_prompts(frame._replace(coarse_prob=at_least_single(frame.coarse_prob)), prompts)

    def _exact_prompts(self, frame: _Frame, prompts: Prompts | None) -> Prompts:
        mask_side = 4 * frame.embedding.shape[-1]
        user = Prompts() if prompts is None else canonical(prompts)
        if user.points_xy is None and user.boxes_xyxy is None:
            derived = derive_prompts(frame.coarse_prob, self.config.prompts, mask_side, frame.valid_hw)
            return derived if user.mask_logits is None else replace(derived, mask_logits=user.mask_logits)
        if frame.roi is not None:
            user = frame.roi.enter(user)
        if user.mask_logits is None:
            mask = derive_mask_prompt(frame.coarse_prob, self.config.prompts, mask_side, frame.valid_hw)
            user = replace(user, mask_logits=mask)
        return self._with_discs(user)

    def _with_discs(self, user: Prompts) -> Prompts:
        radius = self.config.prompts.click_disc
        if not radius or user.points_xy is None or user.mask_logits is None:
            return user
        with torch.autocast(user.mask_logits.device.type, enabled=False):
            return replace(user, mask_logits=draw_discs(user, radius, self.image_size))

    def _decode(self, frame: _Frame, prompts: Prompts, tokens: torch.Tensor | None = None) -> _Decoded:
        mask_logits, iou_pred = decode(self.sam, frame.embedding, prompts, tokens)
        mixed = select_softly(mask_logits, iou_pred, self.config.refiner.selection_temperature)
        return _Decoded(mixed, mask_logits, iou_pred, prompts)

    def _output(self, frame: _Frame, decoded: _Decoded, coarse_prob: torch.Tensor) -> RefinerOutput:
        """A pass's result in the sam frame."""
        mixed, mask_logits, iou_pred, prompts = decoded
        if frame.roi is None:
            refined_prob = torch.sigmoid(resize(mixed, *coarse_prob.shape[-2:]))
            return RefinerOutput(mixed, refined_prob, mask_logits, iou_pred, prompts)
        roi = frame.roi
        return RefinerOutput(
            refined_logits=roi.paste_logits(mixed, coarse_prob),
            refined_prob=roi.paste_prob(mixed, coarse_prob),
            mask_logits=roi.paste_logits(mask_logits, coarse_prob),
            iou_pred=iou_pred,
            prompts=roi.leave(prompts),
        )


def select_softly(mask_logits: torch.Tensor, iou_pred: torch.Tensor, temperature: float) -> torch.Tensor:
    """(B, 3, M, M) and (B, 3) -> (B, 1, M, M): softmax(iou_pred / temperature)-weighted sum of the logits."""
    weights = torch.softmax(iou_pred / temperature, dim=1)
    return (mask_logits * weights[:, :, None, None]).sum(dim=1, keepdim=True)


def canonical(prompts: Prompts) -> Prompts:
    """The same prompts with each item's points sorted (label, x, y), without doubles, padded behind with label -1.

    Sums over tokens depend on their order in the last bits; a fixed order makes the result a function of the set.
    """
    if prompts.points_xy is None or prompts.point_labels is None:
        return prompts
    keep = []
    for xy, labels in zip(prompts.points_xy.detach().tolist(), prompts.point_labels.tolist()):
        first: dict[tuple[float, ...], int] = {}
        for index, (point, label) in enumerate(zip(xy, labels)):
            if label != -1:
                first.setdefault((-label, *point), index)
        keep.append([first[key] for key in sorted(first)])
    count = max(map(len, keep), default=0)
    if count == 0:
        return replace(prompts, points_xy=None, point_labels=None)
    device = prompts.points_xy.device
    index = torch.tensor([k + [0] * (count - len(k)) for k in keep], device=device)
    real = torch.tensor([[i < len(k) for i in range(count)] for k in keep], device=device)
    points = prompts.points_xy.gather(1, index[..., None].expand(-1, -1, 2))
    labels_out = prompts.point_labels.gather(1, index)
    return replace(
        prompts,
        points_xy=torch.where(real[..., None], points, 0.0),
        point_labels=torch.where(real, labels_out, -1),
    )


def draw_discs(prompts: Prompts, radius: float, side: int) -> torch.Tensor:
    """mask_logits (B, 1, M, M) with a disc of +DISC at each foreground point and -DISC at each background one.

    radius: as a share of the frame. side: S of the points' frame. Where discs overlap the nearest point has its way, and
    of two equally near ones the foreground: the order of the points does not matter.
    """
    logits, points, labels = prompts.mask_logits, prompts.points_xy, prompts.point_labels
    assert logits is not None and points is not None and labels is not None
    m = logits.shape[-1]
    grid = (torch.arange(m, device=logits.device, dtype=logits.dtype) + 0.5) * (side / m) - 0.5
    dy = (grid[None, None, :] - points[..., 1:2]).square()  # (B, N, M)
    dx = (grid[None, None, :] - points[..., 0:1]).square()
    distance = dy[..., :, None] + dx[..., None, :]  # (B, N, M, M), squared
    near = [torch.where((labels == k)[..., None, None], distance, torch.inf).amin(dim=1) for k in (1, 0)]
    inside = torch.minimum(near[0], near[1]) <= (radius * side) ** 2
    value = torch.where(near[0] <= near[1], DISC, -DISC)
    return torch.where(inside[:, None], value[:, None].to(logits.dtype), logits)


class Gate(nn.Module):
    """How far the refined probability is trusted against the coarse one: g in [g_min, g_max], by ``GateConfig``."""

    def __init__(self, config: GateConfig) -> None:
        super().__init__()
        self.config = config
        self.net: nn.Sequential | None = None
        if config.mode in ("learned", "product"):
            self.net = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 1, 1)
            )
            # Starts at the same trust everywhere: sigmoid(0) = 1/2.
            nn.init.zeros_(self.net[-1].weight)
            nn.init.zeros_(self.net[-1].bias)

    def forward(self, coarse_prob: torch.Tensor, refined_prob: torch.Tensor) -> torch.Tensor:
        """coarse_prob, refined_prob: (B, 1, S, S) in [0, 1] -> final_prob, the same."""
        mode = self.config.mode
        if mode == "off":
            return refined_prob
        share = torch.ones_like(coarse_prob)
        if mode in ("confidence", "product"):
            # A floor under the base: the power's derivative at 0 is infinite for gamma < 1.
            share = share - (2 * coarse_prob - 1).abs().clamp(1e-6, 1) ** self.config.gamma
        if self.net is not None:
            share = share * self._learned(self.net, coarse_prob, refined_prob)
        g = self.config.g_min + (self.config.g_max - self.config.g_min) * share
        return coarse_prob + g * (refined_prob - coarse_prob)

    @staticmethod
    def _learned(net: nn.Sequential, coarse_prob: torch.Tensor, refined_prob: torch.Tensor) -> torch.Tensor:
        """Trust is smooth: it is made at a quarter of the resolution."""
        height, width = coarse_prob.shape[-2:]
        pair = torch.cat([coarse_prob, refined_prob, (refined_prob - coarse_prob).abs()], dim=1)
        small = F.avg_pool2d(pair, 4) if min(height, width) >= 64 else pair
        return resize(torch.sigmoid(net(small)), height, width)
