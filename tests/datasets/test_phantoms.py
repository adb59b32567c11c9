"""Phantoms look like what they say, and the sample data can be made again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.datasets.samples import CINE_FRAMES, STUDIES, write_samples
from ultrarefiner_monai.imaging.readers import extension, read_image_file, read_mask


@pytest.mark.parametrize("lesion", ["none", "benign", "malignant", "random"])
@pytest.mark.parametrize("size", [(96, 128), (160, 64), (32, 32)])
def test_shape_values_and_seed(lesion: str, size: tuple[int, int]) -> None:
    first, again = (make_phantom(np.random.default_rng(5), *size, lesion) for _ in range(2))
    assert first.image.shape == first.mask.shape == size
    assert first.image.dtype == first.mask.dtype == np.uint8 and first.mask.max() <= 1
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    assert first.description == again.description
    if lesion != "random":
        assert first.mask.any() == (lesion != "none")
        assert first.description.startswith("normal" if lesion == "none" else lesion)


def test_lesions_are_darker_than_their_surroundings() -> None:
    darker = 0
    for seed in range(20):
        phantom = make_phantom(np.random.default_rng(seed), 128, 128, "benign" if seed % 2 else "malignant")
        inside = ndimage.binary_erosion(phantom.mask, iterations=2)
        ring = ndimage.binary_dilation(phantom.mask, iterations=8) & ~ndimage.binary_dilation(
            phantom.mask, iterations=2
        )
        darker += float(np.median(phantom.image[inside])) < float(np.median(phantom.image[ring]))
    assert darker >= 18


def test_normal_pictures_have_dark_places_too() -> None:
    """Otherwise darkness alone would tell a lesion."""
    shares = []
    for seed in range(20):
        image = make_phantom(np.random.default_rng(seed), 128, 128, "none").image
        smooth = ndimage.gaussian_filter(image.astype(float), 4)
        shares.append((smooth < 0.6 * np.median(smooth)).mean())
    assert np.mean(np.array(shares) > 0.02) > 0.5


def test_speckle_is_correlated_more_across_the_beam() -> None:
    image = make_phantom(np.random.default_rng(0), 256, 256, "none").image.astype(float)
    texture = image - ndimage.gaussian_filter(image, 3)
    across = (texture[:, 1:] * texture[:, :-1]).mean()
    along = (texture[1:] * texture[:-1]).mean()
    assert across > along > 0


def test_bad_requests() -> None:
    with pytest.raises(ValueError, match="lesion must be"):
        make_phantom(np.random.default_rng(0), 64, 64, "cyst")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="32"):
        make_phantom(np.random.default_rng(0), 8, 64)


SHIPPED = Path(__file__).parents[2] / "sample-data"


def test_sample_data(tmp_path: Path) -> None:
    paths = write_samples(tmp_path / "with space", seed=0)
    assert len(paths) == len(STUDIES)
    kinds = set()
    for path, (name, size, lesion, spacing, labelled) in zip(paths, STUDIES, strict=True):
        image_file = read_image_file(path)
        kinds.add((image_file.kind, image_file.is_volume))
        assert (image_file.height, image_file.width) == size and path.name == name
        assert image_file.spacing_mm == (None if spacing is None else pytest.approx((spacing, spacing)))
        assert image_file.n_frames == (CINE_FRAMES if image_file.is_volume else 1)
        # The shipped files are these, up to rounding on another machine.
        np.testing.assert_allclose(image_file.frame(), read_image_file(SHIPPED / name).frame(), atol=0.05)
        assert image_file.kind != "dicom" or image_file.patient.startswith("PHANTOM")
        label = path.parent / "labels" / "final" / f"{name.removesuffix(extension(name))}.nii.gz"
        assert label.exists() == labelled
        if labelled:
            assert read_mask(label, image_file).any() == (lesion != "none")
    assert kinds == {("png", False), ("jpeg", False), ("dicom", False), ("dicom", True), ("nifti", False)}
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < 3_000_000
