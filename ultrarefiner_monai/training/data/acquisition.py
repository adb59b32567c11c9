"""Augmentation ``machines``: other scanners, probes, settings and users, as MONAI transforms (config: MachinesConfig).

What a department's images look like is made by its machines: field of view and aspect, gain and time-gain curve, grey map,
grain of the speckle, resolution, shadows of poor contact, marks burned into the picture. A network that has seen one
hospital learns them with the lesions. Each transform here draws one of these anew; all work on (1, S, S) float32 in
[0, 1], on plain tensors, with smooth fields computed at a low resolution, since training waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from monai.transforms import Compose, Identityd, OneOf

from ultrarefiner_monai.training.data.acquisition_looks import (
    RandCompressiond,
    RandGaind,
    RandGreyMapd,
    RandNoiseFloord,
    RandResolutiond,
    RandShadowd,
    RandSpeckled,
)
from ultrarefiner_monai.training.data.acquisition_ranges import Ranges
from ultrarefiner_monai.training.data.acquisition_warp import RandFieldOfViewd
from ultrarefiner_monai.training.data.marks import RandMarksd


def machine_steps(config: Ranges, image: Hashable, label: Hashable) -> list[Callable]:
    """The transforms in the order in which an image comes about: the body, the beam, the machine's screen, the file.

    image (1, S, S) float32 in [0, 1]; label (C, S, S), the lesion first; both stay in their range. A share
    ``config.clean_share`` of the images goes through the geometry alone.
    """
    looks = Compose(
        [
            RandShadowd(image, config),
            RandGaind(image, config),
            RandSpeckled(image, config),
            RandNoiseFloord(image, config),
            RandResolutiond(image, config),
            RandGreyMapd(image, config),
            RandMarksd(image, label, config.marks_share, config.marks, config.marks_at_lesion),
            RandCompressiond(image, config),
        ]
    )
    weights = (config.clean_share, 1 - config.clean_share)
    return [RandFieldOfViewd(image, label, config), OneOf([Identityd([image]), looks], weights=weights)]
