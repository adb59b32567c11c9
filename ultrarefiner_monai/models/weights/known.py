"""The weights that are known by name: where their authors put them, their licences and checksums.

Sources of the checksums: SAM: micro-sam's registry and several Git LFS pointers agree (the six digits in SAM's own file
names are of the MD5). MedSAM and R50+ViT-B_16: several independent public copies of the file at the address agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class WeightFile:
    """One known file. size in bytes, sha256 in hex; None where nothing is published (pinned on first use)."""

    name: str
    file: str
    url: str
    licence: str
    about: str
    kind: Literal["sam", "npz"]
    size: int | None = None
    sha256: str | None = None


_SAM = "https://dl.fbaipublicfiles.com/segment_anything/"
KNOWN: Mapping[str, WeightFile] = {
    w.name: w
    for w in (
        WeightFile(
            "sam_vit_b",
            "sam_vit_b_01ec64.pth",
            _SAM + "sam_vit_b_01ec64.pth",
            "Apache-2.0",
            "Segment Anything, ViT-B (Kirillov et al. 2023)",
            "sam",
            375042383,
            "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        ),
        WeightFile(
            "sam_vit_l",
            "sam_vit_l_0b3195.pth",
            _SAM + "sam_vit_l_0b3195.pth",
            "Apache-2.0",
            "Segment Anything, ViT-L",
            "sam",
            1249524607,
            "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        ),
        WeightFile(
            "sam_vit_h",
            "sam_vit_h_4b8939.pth",
            _SAM + "sam_vit_h_4b8939.pth",
            "Apache-2.0",
            "Segment Anything, ViT-H",
            "sam",
            2564550879,
            "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        ),
        WeightFile(
            "medsam_vit_b",
            "medsam_vit_b.pth",
            "https://zenodo.org/records/10689643/files/medsam_vit_b.pth",
            "CC BY 4.0",
            "MedSAM, ViT-B on 1.5 M medical image-mask pairs (Ma et al. 2024)",
            "sam",
            375049145,
            "34b34b78c1d18cb8c6bf84cf9c00e135d6d6c965699f3c0e31ef1bc9dcb5be74",
        ),
        WeightFile(
            "ultrasam",
            "UltraSam.pth",
            "https://s3.unistra.fr/camma_public/github/ultrasam/UltraSam.pth",
            "CC BY-NC-SA (research only)",
            "UltraSam, ViT-B on ultrasound (Meyer et al. 2025); has seen BUSI and other public sets",
            "sam",
        ),
        WeightFile(
            "r50_vit_b16_npz",
            "R50+ViT-B_16.npz",
            "https://storage.googleapis.com/vit_models/imagenet21k/R50%2BViT-B_16.npz",
            "Apache-2.0",
            "R50+ViT-B_16 on ImageNet-21k (Dosovitskiy et al. 2021): the start of TransUNet",
            "npz",
            461217452,
            "ff009bf39bb4f9198b834cfe46aba2bfdaf730e933ab3e3c4b1edf4226eaafbe",
        ),
    )
}
