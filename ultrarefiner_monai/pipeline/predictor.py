"""From the pixels of one frame to a proposal: the one way that serving and evaluation share.

    image -> letterbox -> coarse network -> prompts -> SAM refiner -> post-processing -> safety net -> Proposal

What depends on the image alone (``coarse_prob`` in the coarse frame and ``image_embedding``) is cached; all that
depends on clicks is computed anew, so the reply is a function of image, model and the set of prompts: undo is exact.
"""

from __future__ import annotations

import copy

import numpy as np
import torch

from ultrarefiner_monai.core.cache import image_key
from ultrarefiner_monai.core.geometry import to_prompts
from ultrarefiner_monai.core.types import Clicks, InputError, RefinerOutput
from ultrarefiner_monai.interaction.clicks import PixelClicks, check_clicks, core_clicks, honour_clicks
from ultrarefiner_monai.masks.postprocess import fuse_band, prob_to_mask, safety_net
from ultrarefiner_monai.masks.uncertainty import expected_iou, flip_uncertainty, outline_band, uncertainty
from ultrarefiner_monai.models.checkpoints import System
from ultrarefiner_monai.pipeline.cached_parts import RECENT_BYTES, CachedParts
from ultrarefiner_monai.pipeline.proposal import Features, Proposal
from ultrarefiner_monai.pipeline.proposed_points import as_clicks, nothing_coarse
from ultrarefiner_monai.pipeline.recent_results import CoarseResult, RecentResults
from ultrarefiner_monai.pipeline.refine import refine
from ultrarefiner_monai.pipeline.request import Request, check_image


class Predictor(CachedParts):
    """A system ready to answer. Thread-safe: any number of threads may ask at once.

    One lock lets a single coarse network or encoder run at a time (two would fight for the same cores); the short
    decoder has a lock of its own, so that a click need not wait for the encoder of another image. No lock is held while
    waiting for the cache.
    """

    def with_decoder(self, system: System) -> Predictor:
        """A predictor of ``system``, whose coarse network and image encoder are this one's own (the same modules, in the
        same memory): made at once, with the same cache, and the networks still run one at a time."""
        other = copy.copy(self)
        assert self.system.refiner is not None and system.refiner is not None
        if (system.coarse, system.refiner.sam.image_encoder) != (
            self.system.coarse,
            self.system.refiner.sam.image_encoder,
        ):
            raise ValueError("with_decoder takes a system that shares coarse network and image encoder with this one")
        other.system, other._recent = system, RecentResults(RECENT_BYTES)
        return other

    def seen_as(self, view: str) -> Predictor:
        """The same, for images on which the probe was held so (``core.views``). Networks, locks and caches are shared; what is cached
        knows no view. A view that the model does not know is as none."""
        known = view if view in self.system.config.views else ""
        if known == self.view:
            return self
        other = copy.copy(self)
        other.view = known
        return other

    # --- public -------------------------------------------------------------------------------------------------------

    def coarse(self, image: np.ndarray) -> Proposal:
        """The coarse network alone. image: (H, W) float32 in [0, 1], one frame's original pixels. InputError if not."""
        return self._coarse_proposal(Request(image), "off")

    def propose(self, image: np.ndarray) -> Proposal:
        """The automatic result. image as for ``coarse``. Without refiner weights, and where the gate is closed (a refiner
        that the calibration turned down), it is the coarse mask."""
        request = Request(image)
        if self.system.refiner is None:
            return self._coarse_proposal(request, "untrained")
        config = self.system.config
        coarse = self._coarse(request)
        if coarse.doubted or config.gate.closed:  # the refiner is asked as soon as somebody clicks
            return self._coarse_proposal(request, "trained")
        coarse_prob = coarse.prob
        with request.clock("post"):
            coarse_mask = prob_to_mask(coarse_prob, config.post)
            clicks = core_clicks(coarse_mask) if config.refiner.self_click else Clicks()
        output, final_prob = self._refine(request, coarse, clicks or None)
        with request.clock("post"):
            if clicks:
                refined_mask = self._clicked_mask(final_prob, check_clicks(clicks, request.shape))
            else:
                refined_mask = prob_to_mask(final_prob, config.post)
            mask, rule = safety_net(coarse_mask, refined_mask, config.safety)
            if rule is not None:
                final_prob, iou = coarse_prob, expected_iou(coarse_prob, mask)
            else:
                iou = self._iou(output)
                if config.safety.enabled and config.safety.band_fusion_px:
                    final_prob = fuse_band(coarse_prob, final_prob, coarse_mask, config.safety.band_fusion_px)
        return self._finish(request, mask, final_prob, coarse, iou, rule, "trained")

    def interact(self, image: np.ndarray, clicks: Clicks, blind: bool = False) -> Proposal:
        """The result for a set of clicks and a box in the image frame; without any, ``propose``: decided here and nowhere
        else. blind: the coarse network is not asked, and its mask is empty: what the clicks alone say.

        No gate, no safety net: the user decides. Every click is honoured (``clicks.honour_clicks``). Raises InputError
        for clicks that cannot be used, before any network runs; they are checked here, and not again.
        """
        if not clicks and not blind:
            return self.propose(image)
        request = Request(image)
        pixels = check_clicks(clicks, request.shape)
        coarse = nothing_coarse(request.shape, self.system.config) if blind else self._coarse(request)
        coarse_prob = coarse.prob
        trained = self.system.refiner is not None
        final_prob, iou = coarse_prob, None
        claimed = bool(clicks.foreground_xy) or clicks.box_xyxy is not None
        if trained and (claimed or not blind):
            output, final_prob = self._refine(request, coarse, clicks)
            iou = self._iou(output)
        with request.clock("post"):
            mask = self._clicked_mask(final_prob, pixels)
            if not trained:
                iou = expected_iou(final_prob, mask)
        state = "trained" if trained else "untrained"
        return self._finish(request, mask, final_prob, coarse, iou, None, state, clicked=True)

    def points(self, image: np.ndarray) -> tuple[Clicks, dict[str, float]]:
        """(the points that the point proposal network finds, as clicks in the image frame; seconds of each step); image as for
        ``coarse``. They lie on pixels, so that a client can send them back as they are. InputError for a system without one."""
        config, ppn = self.system.config, self.system.ppn
        if ppn is None or config.sam is None:
            raise InputError(
                "the model that is served proposes no points: train a point proposal network (`ultrarefiner train ppn`)"
            )
        request = Request(image)
        letterbox = self._letterbox(request, config.sam.image_size)
        embedding = self._seen(self._embedding(request, letterbox))
        with self._light, request.clock("decode"), torch.inference_mode():
            found = ppn(embedding, letterbox.inner_hw)
        return as_clicks(found, letterbox), request.times()

    def prepare(self, image: np.ndarray) -> None:
        """Compute and cache what depends on the image alone, where it is not cached yet; image as for ``coarse``."""
        request, config = Request(image), self.system.config
        self._coarse(request)
        if self.system.refiner is not None and config.sam is not None and not config.refiner.roi:
            self._embedding(request, self._letterbox(request, config.sam.image_size))

    def features(self, image: np.ndarray) -> Features:
        """What is cached of an image, computed where it is not yet, and what its view adds; image as for ``coarse``. Raises
        InputError for a system without a refiner, and with ``refiner.roi``, whose embeddings belong to a crop."""
        config = self.system.config
        if self.system.refiner is None or config.sam is None or config.refiner.roi:
            raise InputError("this model has no refiner that reads kept embeddings of whole images")
        request = Request(image)
        coarse = self._coarse(request)
        embedding = self._embedding(request, self._letterbox(request, config.sam.image_size))
        if self.view:
            embedding = self._seen(embedding).half().cpu().numpy()
        return Features(embedding, coarse.arrays["coarse_prob"], request.shape, coarse.doubted)

    def forget(self, image: np.ndarray) -> int:
        """Remove what the cache holds of an image, whatever model made it; the number of entries."""
        return 0 if self.cache is None else self.cache.forget(image_key(check_image(image)))

    def _clicked_mask(self, final_prob: np.ndarray, clicks: PixelClicks) -> np.ndarray:
        # SAM was told where to look; a coarse mask has to pass the same bar as in the automatic result.
        peaks = self.system.refiner is None
        mask = prob_to_mask(final_prob, self.system.config.post, clicks.positive, clicks.negative, peaks=peaks)
        return honour_clicks(mask, final_prob, clicks)

    # --- steps --------------------------------------------------------------------------------------------------------

    def _coarse_proposal(self, request: Request, refiner: str) -> Proposal:
        coarse = self._coarse(request)
        coarse_prob = coarse.prob
        with request.clock("post"):
            mask = prob_to_mask(coarse_prob, self.system.config.post)
            iou = expected_iou(coarse_prob, mask)
        return self._finish(request, mask, coarse_prob, coarse, iou, None, refiner)

    @torch.inference_mode()
    def _refine(
        self, request: Request, coarse: CoarseResult, clicks: Clicks | None
    ) -> tuple[RefinerOutput, np.ndarray]:
        """(the refiner's output, final_prob (H, W) in the image frame)."""
        config, refiner = self.system.config, self.system.refiner
        assert refiner is not None and config.sam is not None
        letterbox = self._letterbox(request, config.sam.image_size)

        # ROI mode encodes the crop around coarse mask and prompts, which no embedding of the whole image can stand for.
        embedding = image = None
        if config.refiner.roi:
            with request.clock("preprocess"):
                image, request.cached = self._square(request, letterbox), False
        else:
            embedding = self._seen(self._embedding(request, letterbox))
        with request.clock("preprocess"):
            coarse_prob = self._in_sam_frame(request, coarse, letterbox)
            prompts = None if clicks is None else to_prompts(clicks, letterbox, self.device)
        valid_hw = letterbox.inner_hw
        with self._heavy if config.refiner.roi else self._light, request.clock("decode"):
            if prompts is None:
                output = refiner(embedding, coarse_prob, image=image, valid_hw=valid_hw)
                final_prob = refiner.final_prob(coarse_prob, output.refined_prob)
            else:
                output = refine(refiner, config, embedding, coarse_prob, prompts, image, valid_hw)
                final_prob = output.refined_prob
        with request.clock("post"):
            return output, self._to_image(final_prob[0, 0], letterbox)

    def _finish(
        self,
        request: Request,
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
            unsure, flip = uncertainty(final_prob, mask, band), None
            if "coarse_spread" in coarse.arrays and not clicked:
                letterbox = self._letterbox(request, self.system.config.coarse.image_size)
                flip = flip_uncertainty(self._to_image(coarse.arrays["coarse_spread"], letterbox), mask, band)
        version, times = self.system.version, request.times()
        return Proposal(
            mask, final_prob, coarse.prob, iou, unsure, rule, refiner, version, times, flip, coarse.presence
        )

    # --- helpers ------------------------------------------------------------------------------------------------------

    def _iou(self, output: RefinerOutput) -> float:
        weights = torch.softmax(output.iou_pred / self.system.config.refiner.selection_temperature, dim=-1)
        return float((weights * output.iou_pred).sum(dim=-1)[0].clamp(0, 1))
