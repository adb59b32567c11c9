"""What depends on an image alone, ``coarse_prob`` in the coarse frame and ``image_embedding``: computed once and cached."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import torch

from ultrarefiner_monai.core.cache import Arrays, EmbeddingCache, to_half
from ultrarefiner_monai.core.geometry import Letterbox
from ultrarefiner_monai.models.checkpoints import System
from ultrarefiner_monai.pipeline.coarse import coarse_arrays, coarse_to_sam, doubt, settle
from ultrarefiner_monai.pipeline.part_keys import part_key
from ultrarefiner_monai.pipeline.recent_results import CoarseResult, RecentResults
from ultrarefiner_monai.pipeline.request import Request

RECENT_BYTES = 64 * 2**20
# Which options change what is cached, as much as the weights do; the others are for what is computed anew.
_COARSE_BY, _EMBEDDING_BY = ("coarse", "flip_tta", "tta_scales"), ("sam",)


class CachedParts:
    """The networks of a system as far as no click matters: what ``Predictor``, which says how it is locked, begins with."""

    def __init__(self, system: System, cache: EmbeddingCache | None = None, device: str | torch.device = "cpu"):
        self.system, self.cache, self.device = system, cache, torch.device(device)
        for network in (system.coarse, system.refiner):
            if network is not None:
                network.eval().to(self.device)
        encoder = None if system.refiner is None else system.refiner.sam.image_encoder
        # Of what makes them, not of the file's version: models that differ in the decoder alone share what is cached.
        self._keys = {
            "c1": part_key(system.coarse, system.config, _COARSE_BY),
            "e0": part_key(encoder, system.config, _EMBEDDING_BY),
        }
        self.view = ""  # of the images that it is shown; "": not known
        self._heavy, self._light = threading.Lock(), threading.Lock()
        self._recent = RecentResults(RECENT_BYTES)

    @property
    def part_keys(self) -> tuple[str, ...]:
        """What stands in the cache's keys for the coarse network and for the image encoder, each with its options."""
        return tuple(self._keys.values())

    def _coarse(self, request: Request) -> CoarseResult:
        """The coarse result: of the images asked for last it is at hand as it is needed, else made from the cache's."""
        forgets = 0 if self.cache is None else self.cache.forgets
        found = None if self.cache is None else self._recent.get(request.key, forgets)
        if found is not None:
            return found
        letterbox = self._letterbox(request, self.system.config.coarse.image_size)

        def compute() -> Arrays:
            with request.clock("preprocess"):
                image = self._square(request, letterbox)
            with self._heavy, request.clock("coarse"):
                config = self.system.config
                return coarse_arrays(self.system.coarse, image, letterbox, config.flip_tta, config.tta_scales)

        arrays = self._kept(request, "c1", compute)
        with request.clock("post"):
            arrays, doubted = doubt(settle(arrays, self.system.config.post), self.system.config.post)
            coarse = CoarseResult(arrays, self._to_image(arrays["coarse_prob"], letterbox), doubted)
        coarse.prob.setflags(write=False)
        if self.cache is not None:
            self._recent.put(request.key, coarse, forgets)
        return coarse

    def _embedding(self, request: Request, letterbox: Letterbox) -> np.ndarray:
        """What SAM's encoder makes of the whole image, fp16."""
        refiner = self.system.refiner
        assert refiner is not None

        def compute() -> Arrays:
            with request.clock("preprocess"):
                image = self._square(request, letterbox)
            with self._heavy, request.clock("encode"), torch.inference_mode():
                return {"image_embedding": refiner.embed(image).float().cpu().numpy()}

        return self._kept(request, "e0", compute)["image_embedding"]

    @torch.inference_mode()
    def _seen(self, embedding: np.ndarray) -> torch.Tensor:
        """The embedding on the device, with what the view adds."""
        tensor = self._tensor(embedding)
        return self.system.refiner.views(tensor, [self.view]) if self.view else tensor  # type: ignore[union-attr, operator]

    def _in_sam_frame(self, request: Request, coarse: CoarseResult, letterbox: Letterbox) -> torch.Tensor:
        if coarse.sam_prob is None:
            coarse_box = self._letterbox(request, self.system.config.coarse.image_size)
            prob = self._tensor(coarse.arrays["coarse_prob"])[None, None]
            coarse.sam_prob = coarse_to_sam(prob, coarse_box, letterbox)
        return coarse.sam_prob

    def _kept(self, request: Request, part: str, compute: Callable[[], Arrays]) -> Arrays:
        def fresh() -> Arrays:
            request.cached = False
            return compute()

        if self.cache is None:
            return to_half(fresh())  # as the cache would: with and without it the answer is the same
        return self.cache.get_or_compute(f"{request.key}-{self._keys[part]}-{part}", fresh)

    def _letterbox(self, request: Request, size: int) -> Letterbox:
        return Letterbox(*request.shape, size)

    def _square(self, request: Request, letterbox: Letterbox) -> torch.Tensor:
        """The image (1, 1, S, S) in a square frame, on the device."""
        return letterbox.apply(torch.from_numpy(request.image)[None, None]).to(self.device)

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.tensor(array).to(self.device).float()  # torch widens fp16 twice as fast as numpy

    def _to_image(self, prob: np.ndarray | torch.Tensor, letterbox: Letterbox) -> np.ndarray:
        """(S, S) in a square frame -> (H, W) float32 in [0, 1] in the image frame."""
        tensor = prob if isinstance(prob, torch.Tensor) else torch.from_numpy(prob.astype(np.float32))
        return letterbox.invert(tensor.float().cpu()[None, None])[0, 0].clamp(0, 1).numpy()
