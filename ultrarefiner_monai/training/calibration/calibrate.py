"""The last step of a run: how a probability becomes a mask is chosen on the selection images, never on the fold reported.

Five numbers decide whether the tool marks what is no lesion: the threshold, the probability that a component must reach
somewhere, how sure a finding of the coarse network must be beside its surest one, the smallest component, and how likely it
must be that there is a lesion at all. They are tried on a small grid with the predictor that serves, at the images' own
size, and the checkpoint that leaves the run carries the best ones. With a refiner the whole way to the automatic result is
tried, and besides how much of the refined probability is mixed with the coarse one: it must harm no set of images, or it is
turned down. ``choosing`` says what is best, and when a protection may be off. Lesion-free images are few, so lesion-free
crops of the selection images are judged beside them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.config import SystemConfig
from ultrarefiner_monai.core.cache import EmbeddingCache
from ultrarefiner_monai.datasets.datalist import Item
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask
from ultrarefiner_monai.models.checkpoints import System, load_system, read_checkpoint, save_system, with_options
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.training.calibration.candidates import Example, Grid, figures_of, figures_of_mask, grid_around
from ultrarefiner_monai.training.calibration.choosing import BOUNDARY_WEIGHT, TOLERANCE, Chosen, Table, choose_among
from ultrarefiner_monai.training.calibration.explaining import explain, report
from ultrarefiner_monai.training.data.tissue import tissue_pairs

log = logging.getLogger(__name__)
RATIOS = (0.0, 0.95)
_CACHE_BYTES = 2**30  # the refiner is tried in several ways: what depends on the image alone is computed once
_TISSUE_SEED = 0
# image (H, W) in [0, 1], label (H, W) bool, set, view, whether it is a crop of tissue
Labelled = tuple[np.ndarray, np.ndarray, str, str, bool]


@dataclass
class Found:
    """The choice, and the table of the ``peak_ratio`` that it is from."""

    table: Table
    chosen: Chosen
    config: SystemConfig


def finish(best: str | Path, out: str | Path, items: Sequence[Item], device: str = "cpu") -> SystemConfig:
    """Write ``best`` again as ``out``: in half precision, with the options that suit the selection images ``items``, which
    may come from several sets. What was decided and why stands in ``meta["calibration"]``, in plain values."""
    system = load_system(best, device=device)
    system = with_options(system, _neutral(system.config))
    cache = EmbeddingCache(_CACHE_BYTES)
    taken = _try_ratios(system, items, cache, device)
    config, about = taken.config, report(taken.table, taken.chosen)
    clicked = None if system.refiner is None else _with_self_clicks(system, taken, items, cache, device)
    if clicked is not None:
        config, figures = clicked
        about = report(taken.table, taken.chosen, figures)
    stored = read_checkpoint(best)
    meta: dict[str, Any] = {**stored.meta, "calibration": {"images": len(items), **about}}
    refiner = system.refiner
    sam = None if refiner is None else refiner.sam
    gate = refiner.gate if refiner is not None and refiner.gate.state_dict() else None
    views = refiner.views if refiner is not None else None
    save_system(out, config, system.coarse, sam, meta, half=True, gate=gate, ppn=system.ppn, views=views)
    post = config.post
    log.info(
        "threshold %.2f, min_peak %.2f, peak_ratio %.2f, min_area %.4f, min_presence %.2f: %.4f",
        *(post.threshold, post.min_peak, post.peak_ratio, post.min_area, post.min_presence, about["select"]),
    )
    for line in explain(about):
        log.info(line)
    return config


def choose(examples: Iterable[Example], start: SystemConfig) -> tuple[SystemConfig, float]:
    """The post-processing (gate and safety net) for these images, and its figure: see ``choosing``. ``start``: what the
    probabilities were made with."""
    examples = list(examples)
    grid = grid_around(start.post, start.safety, any(e.refined_prob is not None for e in examples))
    table = Table(examples, [figures_of(e, grid) for e in examples], grid)
    _, chosen = choose_among([table])
    return _configured(start, grid, chosen), chosen.figure


def _neutral(config: SystemConfig) -> dict[str, Any]:
    """Options without what an earlier calibration chose for other weights or images."""
    gate = config.gate.reopened()
    chosen = {"safety.enabled": True, "refiner.self_click": False, "post.min_presence": 0.0}
    return {**chosen, "gate.mode": gate.mode, "gate.g_min": gate.g_min, "gate.g_max": gate.g_max}


def _configured(start: SystemConfig, grid: Grid, chosen: Chosen) -> SystemConfig:
    post = replace(grid.posts[chosen.post], min_presence=chosen.bar)
    share = grid.shares[chosen.share]
    with_refiner = len(grid.shares) > 1
    gate = start.gate.times(share) if with_refiner else start.gate
    return replace(start, post=post, gate=gate, safety=replace(start.safety, enabled=chosen.net))


# --- probabilities ----------------------------------------------------------------------------------------------------


def _images(items: Sequence[Item]) -> Iterable[Labelled]:
    """The selection images, then crops of their lesion-free tissue; one after the other, so that few are in memory."""
    for item in items:
        yield read_image_file(item.image).frame(0), read_mask(item.mask)[0] > 0, item.set, item.view, False
    for _, crop, item in tissue_pairs(items, _TISSUE_SEED):
        yield crop, np.zeros(crop.shape, dtype=bool), item.set, item.view, True


def _try_ratios(system: System, items: Sequence[Item], cache: EmbeddingCache, device: str) -> Found:
    """The best candidate for any of RATIOS. That decides what the refiner sees, so that each has its own probabilities, but
    for images where it changes nothing: those with a single finding."""
    safety = replace(system.config.safety, enabled=False)
    posts = [replace(system.config.post, peak_ratio=ratio) for ratio in RATIOS]
    bare = [replace(system, config=replace(system.config, post=post, safety=safety)) for post in posts]
    predictors = [Predictor(s, cache, device) for s in bare]
    grids = [grid_around(post, system.config.safety, system.refiner is not None) for post in posts]
    light: list[Example] = []  # what the table has to know of an image: not its probabilities
    rows: list[list[np.ndarray]] = [[] for _ in RATIOS]
    for image, label, name, view, tissue in _images(items):
        first: Example | None = None
        for k, predictor in enumerate(predictors):
            if first is not None and np.array_equal(predictor.coarse(image).coarse_prob, first.coarse_prob):
                rows[k].append(rows[0][-1])  # nothing faded
                continue
            example = _example(predictor.seen_as(view), image, label, name, tissue)
            rows[k].append(figures_of(example, grids[k]))
            first = first or example
        assert first is not None
        light.append(replace(first, coarse_prob=_NOTHING, refined_prob=None, label=np.array([[label.any()]])))
    tables = [Table(light, own, grid) for own, grid in zip(rows, grids)]
    k, chosen = choose_among(tables)
    start = replace(system.config, post=posts[k])
    return Found(tables[k], chosen, _configured(start, grids[k], chosen))


_NOTHING = np.zeros((1, 1), dtype=np.float32)


def _example(predictor: Predictor, image: np.ndarray, label: np.ndarray, name: str, tissue: bool) -> Example:
    found = predictor.propose(image)  # without a refiner the coarse result
    refined = None if predictor.system.refiner is None else found.final_prob
    return Example(found.coarse_prob, refined, label, found.presence, name, tissue)


# --- a click of its own -----------------------------------------------------------------------------------------------


def _with_self_clicks(
    system: System, taken: Found, items: Sequence[Item], cache: EmbeddingCache, device: str
) -> tuple[SystemConfig, tuple[np.ndarray, np.ndarray]] | None:
    """The same with ``refiner.self_click``, and its (n,) figures and boundary F, where that harms no set and is better by
    TOLERANCE: it costs a second pass of the decoder. None where it is not. There is no constant gate on that way.
    Lesion-free images are asked only if the lesions speak for it."""
    table, chosen, config = taken.table, taken.chosen, taken.config
    other = replace(config, gate=system.config.gate, refiner=replace(config.refiner, self_click=True))
    predictor = Predictor(replace(system, config=other), cache, device)
    figures, edges = (x.copy() for x in table.result(chosen))
    coarse, coarse_edges = table.result(replace(chosen, share=len(table.grid.shares) - 1))
    labelled = np.flatnonzero(table.hidden == 0)
    clicked = 0.0
    for wanted in (True, False):
        for k, (image, label, _, view, _) in enumerate(_images(items)):
            if bool(label.any()) == wanted:
                figures[k], edges[k] = figures_of_mask(predictor.seen_as(view).propose(image).mask, label)
        mean = table.sets.means(edges)
        clicked = float(table.sets.figure(figures)) + BOUNDARY_WEIGHT * float(mean.mean() if len(mean) else 0.0)
        harmed = table.harms(figures, edges, coarse, coarse_edges).any()
        if not len(labelled) or harmed or clicked <= chosen.objective + TOLERANCE:
            log.info("a click of its own in each finding: %.4f, without %.4f: without", clicked, chosen.objective)
            return None
    log.info("a click of its own in each finding: %.4f, without %.4f: with it", clicked, chosen.objective)
    return other, (figures, edges)
