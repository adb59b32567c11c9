"""From the pixels of one frame to a proposal: the one way that serving and evaluation share.

    image -> letterbox -> coarse network -> prompts -> SAM refiner -> post-processing -> safety net -> Proposal

What depends on the image alone (``coarse_prob`` in the coarse frame and ``image_embedding``) is cached; all that
depends on clicks is computed anew, so the reply is a function of image, model and the set of prompts: undo is exact.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from .cache import Arrays, EmbeddingCache, image_key, to_half
from .checkpoints import System
from .clicks import check_clicks, honour_clicks
from .config import to_dict
from .geometry import Letterbox, resize
from .models.mending import mended
from .models.prompts import derive_mask_prompt
from .postprocess import fuse_band, prob_to_mask, safety_net
from .recent import CoarseResult, RecentResults
from .types import Clicks, InputError, Prompts, RefinerOutput
from .uncertainty import expected_iou, flip_uncertainty, outline_band, uncertainty

MIN_SIDE = 8
_RECENT_BYTES = 64 * 2**20


@dataclass
class Proposal:
    """What is offered for one frame; arrays are (H, W) in the image frame.

    mask: uint8, 0 or 1. final_prob: float32 in [0, 1], what the mask was made from (the coarse one where the safety net
    fired). coarse_prob: float32 in [0, 1]; it may be read-only, shared by an image's answers. iou_pred: SAM's estimate, mixed like the masks; where the coarse mask is
    returned, what its probabilities promise (``uncertainty.expected_iou``; None for an empty mask). uncertainty,
    flip_uncertainty: see ``uncertainty``; the latter None without flip_tta and with clicks. safety_rule: the rule that
    fired (``postprocess.safety_net``) or None.
    refiner: "trained", "untrained" (there are no weights: the coarse mask stands) or "off" (not asked for).
    timings: seconds of preprocess, coarse, encode, decode, post and total; 0 for what was not run or came from the
    cache. "cached": 1.0 where neither the coarse network nor the encoder ran, else 0.0.
    """

    mask: np.ndarray
    final_prob: np.ndarray
    coarse_prob: np.ndarray
    iou_pred: float | None
    uncertainty: float
    safety_rule: str | None
    refiner: str
    version: str
    timings: dict[str, float] = field(default_factory=dict)
    flip_uncertainty: float | None = None


class Predictor:
    """A system ready to answer. Thread-safe: any number of threads may ask at once.

    One lock lets a single coarse network or encoder run at a time (two would fight for the same cores); the short
    decoder has a lock of its own, so that a click need not wait for the encoder of another image. No lock is held while
    waiting for the cache.
    """

    def __init__(self, system: System, cache: EmbeddingCache | None = None, device: str | torch.device = "cpu"):
        self.system, self.cache, self.device = system, cache, torch.device(device)
        for network in (system.coarse, system.refiner):
            if network is not None:
                network.eval().to(self.device)
        # The configuration changes what comes out as much as the weights do.
        options = f"{system.version} {sorted(to_dict(system.config).items())}"
        self._model_key = hashlib.sha256(options.encode()).hexdigest()[:16]
        self._heavy, self._light = threading.Lock(), threading.Lock()
        self._recent = RecentResults(_RECENT_BYTES)

    # --- public -------------------------------------------------------------------------------------------------------

    def coarse(self, image: np.ndarray) -> Proposal:
        """The coarse network alone. image: (H, W) float32 in [0, 1], one frame's original pixels. InputError if not."""
        return self._coarse_proposal(_Request(image), "off")

    def propose(self, image: np.ndarray) -> Proposal:
        """The automatic result. image as for ``coarse``. Without refiner weights it is the coarse mask."""
        request = _Request(image)
        if self.system.refiner is None:
            return self._coarse_proposal(request, "untrained")
        config = self.system.config
        coarse = self._coarse(request)
        coarse_prob = coarse.prob
        output, final_prob = self._refine(request, coarse, None)
        with request.clock("post"):
            coarse_mask = prob_to_mask(coarse_prob, config.post)
            refined_mask = prob_to_mask(final_prob, config.post)
            mask, rule = safety_net(coarse_mask, refined_mask, config.safety)
            if rule is not None:
                final_prob, iou = coarse_prob, expected_iou(coarse_prob, mask)
            else:
                iou = self._iou(output)
                if config.safety.enabled and config.safety.band_fusion_px:
                    final_prob = fuse_band(coarse_prob, final_prob, coarse_mask, config.safety.band_fusion_px)
        return self._finish(request, mask, final_prob, coarse, iou, rule, "trained")

    def interact(self, image: np.ndarray, clicks: Clicks) -> Proposal:
        """The result for a set of clicks and a box in the image frame; without any, ``propose``.

        No gate, no safety net: the user decides. Every click is honoured (``clicks.honour_clicks``). Raises InputError
        for clicks that cannot be used, before any network runs.
        """
        if not clicks:
            return self.propose(image)
        request = _Request(image)
        positive, negative = check_clicks(clicks, request.shape)
        coarse = self._coarse(request)
        coarse_prob = coarse.prob
        trained = self.system.refiner is not None
        final_prob, iou = coarse_prob, None
        if trained:
            output, final_prob = self._refine(request, coarse, clicks)
            iou = self._iou(output)
        with request.clock("post"):
            # SAM was told where to look; a coarse mask has to pass the same bar as in the automatic result.
            mask = prob_to_mask(final_prob, self.system.config.post, positive, negative, peaks=not trained)
            mask = honour_clicks(mask, final_prob, clicks)
            if not trained:
                iou = expected_iou(final_prob, mask)
        state = "trained" if trained else "untrained"
        return self._finish(request, mask, final_prob, coarse, iou, None, state, clicked=True)

    def forget(self, image: np.ndarray) -> int:
        """Remove what the cache holds of an image, whatever model made it; the number of entries."""
        return 0 if self.cache is None else self.cache.forget(image_key(check_image(image)))

    # --- steps --------------------------------------------------------------------------------------------------------

    def _coarse_proposal(self, request: _Request, refiner: str) -> Proposal:
        coarse = self._coarse(request)
        coarse_prob = coarse.prob
        with request.clock("post"):
            mask = prob_to_mask(coarse_prob, self.system.config.post)
            iou = expected_iou(coarse_prob, mask)
        return self._finish(request, mask, coarse_prob, coarse, iou, None, refiner)

    def _coarse(self, request: _Request) -> CoarseResult:
        """The coarse result: of the images asked for last it is at hand as it is needed, else made from the cache's."""
        forgets = 0 if self.cache is None else self.cache.forgets
        found = None if self.cache is None else self._recent.get(request.key, forgets)
        if found is not None:
            return found
        letterbox = self._letterbox(request, self.system.config.coarse.image_size)

        def compute() -> Arrays:
            with request.clock("preprocess"):
                image = letterbox.apply(torch.from_numpy(request.image)[None, None]).to(self.device)
            with self._heavy, request.clock("coarse"):
                config = self.system.config
                return coarse_arrays(self.system.coarse, image, letterbox, config.flip_tta, config.tta_scales)

        arrays = self._kept(request, "c0", compute)
        with request.clock("post"):
            coarse = CoarseResult(arrays, self._to_image(arrays["coarse_prob"], letterbox))
        coarse.prob.setflags(write=False)
        if self.cache is not None:
            self._recent.put(request.key, coarse, forgets)
        return coarse

    @torch.inference_mode()
    def _refine(
        self, request: _Request, coarse: CoarseResult, clicks: Clicks | None
    ) -> tuple[RefinerOutput, np.ndarray]:
        """(the refiner's output, final_prob (H, W) in the image frame)."""
        config, refiner = self.system.config, self.system.refiner
        assert refiner is not None and config.sam is not None
        letterbox = self._letterbox(request, config.sam.image_size)

        def compute() -> Arrays:
            with request.clock("preprocess"):
                image = self._sam_image(request, letterbox)
            with self._heavy, request.clock("encode"), torch.inference_mode():
                return {"image_embedding": refiner.embed(image).float().cpu().numpy()}

        # ROI mode encodes the crop around coarse mask and prompts, which no embedding of the whole image can stand for.
        embedding = image = None
        if config.refiner.roi:
            with request.clock("preprocess"):
                image, request.cached = self._sam_image(request, letterbox), False
        else:
            embedding = self._tensor(self._kept(request, "e0", compute)["image_embedding"])
        with request.clock("preprocess"):
            coarse_prob = self._in_sam_frame(request, coarse, letterbox)
            prompts = None if clicks is None else to_prompts(clicks, letterbox, self.device)
            if prompts is not None and config.prompts.mend:
                coarse_prob = mended(coarse_prob, prompts, config)
            elif prompts is not None and embedding is not None:
                mask = self._mask_prompt(coarse, coarse_prob, 4 * embedding.shape[-1], letterbox)
                prompts = replace(prompts, mask_logits=mask)
        options = {"image": image, "valid_hw": letterbox.inner_hw}
        with self._heavy if config.refiner.roi else self._light, request.clock("decode"):
            if prompts is None:
                output = refiner(embedding, coarse_prob, **options)
                final_prob = refiner.final_prob(coarse_prob, output.refined_prob)
            else:
                output = refiner.interactive(embedding, coarse_prob, prompts, **options)
                final_prob = output.refined_prob
        with request.clock("post"):
            return output, self._to_image(final_prob[0, 0], letterbox)

    def _in_sam_frame(self, request: _Request, coarse: CoarseResult, letterbox: Letterbox) -> torch.Tensor:
        if coarse.sam_prob is None:
            coarse_box = self._letterbox(request, self.system.config.coarse.image_size)
            prob = self._tensor(coarse.arrays["coarse_prob"])[None, None]
            coarse.sam_prob = coarse_to_sam(prob, coarse_box, letterbox)
        return coarse.sam_prob

    def _mask_prompt(
        self, coarse: CoarseResult, coarse_prob: torch.Tensor, side: int, letterbox: Letterbox
    ) -> torch.Tensor | None:
        """The mask prompt that goes with any clicks: it is the coarse network's alone."""
        if coarse.mask_logits is None:
            prompts = self.system.config.prompts
            coarse.mask_logits = derive_mask_prompt(coarse_prob, prompts, side, letterbox.inner_hw)
        return coarse.mask_logits

    def _finish(
        self,
        request: _Request,
        mask: np.ndarray,
        final_prob: np.ndarray,
        coarse: CoarseResult,
        iou: float | None,
        rule: str | None,
        refiner: str,
        clicked: bool = False,
    ) -> Proposal:
        with request.clock("post"):
            band = outline_band(mask)
            unsure = uncertainty(final_prob, mask, band)
            flip = None
            if "coarse_spread" in coarse.arrays and not clicked:
                letterbox = self._letterbox(request, self.system.config.coarse.image_size)
                flip = flip_uncertainty(self._to_image(coarse.arrays["coarse_spread"], letterbox), mask, band)
        return Proposal(
            mask, final_prob, coarse.prob, iou, unsure, rule, refiner, self.system.version, request.times(), flip
        )

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _kept(self, request: _Request, part: str, compute: Callable[[], Arrays]) -> Arrays:
        def fresh() -> Arrays:
            request.cached = False
            return compute()

        if self.cache is None:
            return to_half(fresh())  # as the cache would: with and without it the answer is the same
        return self.cache.get_or_compute(f"{request.key}-{self._model_key}-{part}", fresh)

    def _letterbox(self, request: _Request, size: int) -> Letterbox:
        return Letterbox(*request.shape, size)

    def _sam_image(self, request: _Request, letterbox: Letterbox) -> torch.Tensor:
        return letterbox.apply(torch.from_numpy(request.image)[None, None]).to(self.device)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array).to(self.device).float()  # torch widens fp16 twice as fast as numpy

    def _to_image(self, prob: np.ndarray | torch.Tensor, letterbox: Letterbox) -> np.ndarray:
        """(S, S) in a square frame -> (H, W) float32 in [0, 1] in the image frame."""
        tensor = prob if isinstance(prob, torch.Tensor) else torch.from_numpy(prob.astype(np.float32))
        return letterbox.invert(tensor.float().cpu()[None, None])[0, 0].clamp(0, 1).numpy()

    def _iou(self, output: RefinerOutput) -> float:
        weights = torch.softmax(output.iou_pred / self.system.config.refiner.selection_temperature, dim=-1)
        return float((weights * output.iou_pred).sum(dim=-1)[0].clamp(0, 1))


class _Request:
    """One call: its image, what is known about it and how long each step took."""

    def __init__(self, image: np.ndarray):
        self._start = time.perf_counter()
        self._seconds = dict.fromkeys(("preprocess", "coarse", "encode", "decode", "post"), 0.0)
        self._key: str | None = None
        self.cached = True
        with self.clock("preprocess"):
            self.image = check_image(image)
        self.shape = (self.image.shape[0], self.image.shape[1])

    @property
    def key(self) -> str:
        if self._key is None:
            with self.clock("preprocess"):
                self._key = image_key(self.image)
        return self._key

    @contextmanager
    def clock(self, step: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[step] += time.perf_counter() - start

    def times(self) -> dict[str, float]:
        return {**self._seconds, "total": time.perf_counter() - self._start, "cached": float(self.cached)}


def check_image(image: np.ndarray) -> np.ndarray:
    """(H, W) float32, finite, in [0, 1], at least 8 x 8 pixels, C order; InputError for anything else."""
    if not isinstance(image, np.ndarray) or image.ndim != 2:
        got = f"shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"expected one gray frame, an array of shape (H, W), got {got}")
    if min(image.shape) < MIN_SIDE:
        raise InputError(f"expected an image of at least {MIN_SIDE} x {MIN_SIDE} pixels, got {image.shape}")
    if image.dtype != np.float32:
        raise InputError(f"expected a float32 image in [0, 1], got {image.dtype}; convert and rescale it first")
    low, high = float(image.min()), float(image.max())  # NaN comes through min and max
    if not (low >= 0 and high <= 1):
        raise InputError(f"expected finite image values in [0, 1], got {low:g} to {high:g}")
    # A writable copy where needed: torch shares memory with the array.
    return np.require(image, requirements=["C", "W"])


@torch.inference_mode()
def coarse_arrays(
    network: nn.Module, image: torch.Tensor, letterbox: Letterbox, flip_tta: bool, scales: tuple[float, ...] = ()
) -> Arrays:
    """image (1, 1, S, S) in the coarse frame -> coarse_prob (S, S), 0 in the padding: the mean over all views.

    flip_tta: the mirror image is a view too (padded on the right and below like any other). scales: so are smaller
    copies of the image. With several views there is coarse_spread (S, S), the standard deviation between them.
    """
    columns = letterbox.inner_hw[1]
    upright = [image, _mirror(image, columns)] if flip_tta else [image]
    steps = [(scale, mirrored) for scale in (1.0, *scales) for mirrored in range(len(upright))]
    views = torch.cat([_shrink(upright[mirrored], scale) for scale, mirrored in steps])
    probs = torch.softmax(network(views).float(), dim=1)[:, 1]
    back = [_grow(prob, scale) for prob, (scale, _) in zip(probs, steps)]
    stack = torch.stack([_mirror(p, columns) if mirrored else p for p, (_, mirrored) in zip(back, steps)])
    arrays = {"coarse_prob": _without_padding(stack.mean(dim=0), letterbox).cpu().numpy()}
    if len(stack) > 1:
        arrays["coarse_spread"] = _without_padding(stack.std(dim=0, correction=0), letterbox).cpu().numpy()
    return arrays


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
    return nn.functional.pad(inner, (0, sam_box.size - inner_columns, 0, sam_box.size - inner_rows))


def to_prompts(clicks: Clicks, letterbox: Letterbox, device: str | torch.device = "cpu") -> Prompts:
    """Clicks in the image frame -> Prompts of batch 1 in the sam frame, clamped to the image; always in one order."""
    limit = torch.tensor([letterbox.width - 1.0, letterbox.height - 1.0])
    points = labels = boxes = None
    xy = [*clicks.foreground_xy, *clicks.background_xy]
    if xy:
        inside = torch.minimum(torch.tensor(xy, dtype=torch.float32).clamp(min=0), limit)
        points = letterbox.points(inside)[None].to(device)
        labels = torch.tensor([[1] * len(clicks.foreground_xy) + [0] * len(clicks.background_xy)], device=device)
    if clicks.box_xyxy is not None:
        corners = torch.tensor([clicks.box_xyxy], dtype=torch.float32).clamp(min=0)
        boxes = letterbox.boxes(torch.minimum(corners, limit.repeat(2))).to(device)
    return Prompts(points_xy=points, point_labels=labels, boxes_xyxy=boxes)
