"""The last step of a run: how a probability becomes a mask is chosen on the selection images, never on the fold reported.

Five numbers decide whether the tool marks what is no lesion: the threshold, the probability that a component must reach
somewhere, how sure a finding of the coarse network must be beside its surest one, the smallest component, and how likely it
must be that there is a lesion at all. They are tried on a small grid with the predictor that serves, at the images' own
size, and the checkpoint that leaves the run carries the best ones. With a refiner the whole way to the automatic result is
tried, safety net included, and besides whether the refined probability stands alone or is averaged with the coarse one.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache as remembered
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.cache import EmbeddingCache
from ultrarefiner_monai.checkpoints import System, load_system, read_checkpoint, save_system
from ultrarefiner_monai.config import GateConfig, SystemConfig
from ultrarefiner_monai.data.datalist import Item
from ultrarefiner_monai.data.readers import read_mask, read_study
from ultrarefiner_monai.inference import Predictor
from ultrarefiner_monai.metrics import NORMAL_LIMIT, dice_of
from ultrarefiner_monai.postprocess import prob_to_mask, safety_net

log = logging.getLogger(__name__)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6)
PEAKS = (0.0, 0.7, 0.8, 0.9)  # above that coarse networks lose lesions that they found
RATIOS = (0.0, 0.95)
AREAS = (0.0005, 0.002)
PRESENCES = tuple(round(0.05 * k, 2) for k in range(13))  # 0 to .6
TOLERANCE = 0.005
_CACHE_BYTES = 2**30  # the refiner is tried in several ways: what depends on the image alone is computed once
Labelled = tuple[np.ndarray, np.ndarray]  # (H, W) image in [0, 1] and label, bool
MIX = 0.5  # the share of the refined probability where it is averaged with the coarse one


@dataclass(frozen=True)
class Example:
    """One selection image: probabilities (H, W) in [0, 1] before any post-processing, its label (H, W) bool, and P(there is
    a lesion), None where the coarse network does not say."""

    coarse_prob: np.ndarray
    refined_prob: np.ndarray | None
    label: np.ndarray
    presence: float | None = None


def finish(best: str | Path, out: str | Path, items: Sequence[Item], device: str = "cpu") -> SystemConfig:
    """Write ``best`` again as ``out``: in half precision, with the options that suit the selection images ``items``."""
    system = load_system(best, device=device)
    images = [(read_study(i.image).frame(0), read_mask(i.mask)[0] > 0) for i in items]
    cache = EmbeddingCache(_CACHE_BYTES)
    tried = []
    for ratio in RATIOS:  # it decides what the refiner sees: each needs its own probabilities
        post = replace(system.config.post, peak_ratio=ratio)
        settled = replace(system, config=replace(system.config, post=post))
        tried.append(choose(_examples(settled, images, cache, device), settled.config))
    config, figure = max(tried, key=lambda found: (found[1], found[0].post.peak_ratio))
    if system.refiner is not None:
        config, figure = _with_self_clicks(system, config, figure, images, cache, device)
    stored = read_checkpoint(best)
    meta: dict[str, Any] = {**stored.meta, "calibration": {"images": len(items), "select": round(figure, 4)}}
    refiner = system.refiner
    sam = None if refiner is None else refiner.sam
    gate = refiner.gate if refiner is not None and refiner.gate.state_dict() else None
    save_system(out, config, system.coarse, sam, meta, half=True, gate=gate)
    post = config.post
    log.info(
        "threshold %.2f, min_peak %.2f, peak_ratio %.2f, min_area %.4f, min_presence %.2f: %.4f",
        *(post.threshold, post.min_peak, post.peak_ratio, post.min_area, post.min_presence, figure),
    )
    return config


def _with_self_clicks(
    system: System,
    config: SystemConfig,
    figure: float,
    images: Sequence[Labelled],
    cache: EmbeddingCache,
    device: str,
) -> tuple[SystemConfig, float]:
    """The same with ``refiner.self_click`` where that is better by TOLERANCE: it costs a second pass of the decoder."""
    other = replace(config, refiner=replace(config.refiner, self_click=True))
    predictor = Predictor(replace(system, config=other), cache, device)
    clicked = float(np.mean([_figure(predictor.propose(image).mask > 0, label) for image, label in images]))
    log.info("with a click of its own %.4f, without %.4f", clicked, figure)
    return (other, clicked) if clicked > figure + TOLERANCE else (config, figure)


def _examples(system: System, images: Sequence[Labelled], cache: EmbeddingCache, device: str) -> list[Example]:
    config = system.config
    open_post = replace(config.post, min_presence=0.0)
    bare = replace(system, config=replace(config, post=open_post, safety=replace(config.safety, enabled=False)))
    predictor, examples = Predictor(bare, cache, device), []
    for image, label in images:
        found = predictor.propose(image)  # without a refiner the coarse result
        refined = None if system.refiner is None else found.final_prob
        examples.append(Example(found.coarse_prob, refined, label, found.presence))
    return examples


def choose(examples: Sequence[Example], start: SystemConfig) -> tuple[SystemConfig, float]:
    """The post-processing (gate and safety net) for these images, and its figure.

    Where the coarse network says how likely a lesion is, that keeps normal images clean, and the best is taken; of equals
    the one with the highest bar for a component's peak, then one without the safety net. Where it does not, the highest
    bar of all that come within TOLERANCE of the best: the selection images hold few normal ones, so that what marks them
    is seen too rarely to weigh enough.
    """
    tolerance = TOLERANCE if all(e.presence is None for e in examples) else 0.0
    start = replace(start, post=replace(start.post, min_presence=0.0))
    posts = [
        replace(start.post, threshold=t, min_peak=p, min_area=a)
        for t, p, a in itertools.product(THRESHOLDS, PEAKS, AREAS)
    ]
    candidates = [replace(start, post=post) for post in (start.post, *posts)]
    if any(e.refined_prob is not None for e in examples):
        if start.gate.mode == "off":
            mixed = GateConfig(mode="confidence", g_min=MIX, g_max=MIX)
            candidates += [replace(c, gate=mixed) for c in candidates]
        # A good refiner finds and drops lesions by itself: whether it needs the net is seen, not assumed.
        candidates += [replace(c, safety=replace(c.safety, enabled=False)) for c in candidates]
    shown = np.array([_figures(e, candidates, start) for e in examples]).T
    tried = [_with_presence(c, row, examples) for c, row in zip(candidates, shown)]
    best = max(figure for _, figure in tried)
    close = [(c, figure) for c, figure in tried if figure >= best - tolerance]
    # The first of equals.
    return max(close, key=lambda found: (found[0].post.min_peak, found[1], not found[0].safety.enabled))


def _with_presence(config: SystemConfig, shown: np.ndarray, examples: Sequence[Example]) -> tuple[SystemConfig, float]:
    """``config`` with the best bar for the presence, and its figure. shown: (n,) figures of the examples without a bar.

    A bar hides no lesion that is outlined unless it clears normal images that weigh more; of bars that do equally well the
    middle one is taken: as far as possible from lesions that it would hide and from normal images that it would let
    through.
    """
    presence = np.array([np.inf if e.presence is None else e.presence for e in examples])
    if np.isinf(presence).all():
        return config, round(float(shown.mean()), 6)
    hidden = np.array([0.0 if e.label.any() else 1.0 for e in examples])
    figures = [round(float(np.where(presence < bar, hidden, shown).mean()), 6) for bar in PRESENCES]
    best = [bar for bar, figure in zip(PRESENCES, figures) if figure == max(figures)]
    return replace(config, post=replace(config.post, min_presence=best[len(best) // 2])), max(figures)


def _figures(example: Example, candidates: Sequence[SystemConfig], start: SystemConfig) -> list[float]:
    """The figure of each candidate's automatic result. ``start``: what the refined probabilities were made with."""
    coarse_prob, refined_prob = example.coarse_prob, example.refined_prob
    # Candidates share most of their masks.
    coarse_mask = remembered(lambda post: prob_to_mask(coarse_prob, post))
    if refined_prob is None:
        return [_figure(coarse_mask(c.post), example.label) for c in candidates]
    probs = {False: refined_prob, True: coarse_prob + MIX * (refined_prob - coarse_prob)}
    refined_mask = remembered(lambda mixed, post: prob_to_mask(probs[mixed], post))
    masks = (
        safety_net(coarse_mask(c.post), refined_mask(c.gate != start.gate, c.post), c.safety)[0] for c in candidates
    )
    return [_figure(mask, example.label) for mask in masks]


def _figure(mask: np.ndarray, label: np.ndarray) -> float:
    """Dice of an image with a lesion; 1 or 0 for one without, as in ``phases.selection_figures``."""
    if not label.any():
        return float(mask.mean() <= NORMAL_LIMIT)
    return dice_of(mask, label)
