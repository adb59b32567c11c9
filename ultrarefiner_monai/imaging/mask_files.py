"""Masks from files, always on the grid of the image that they belong to: .nrrd, .seg.nrrd, .nii.gz, .nii, .png, and TIFF,
BMP and JPEG, as clients and annotation tools save them. Written in ``writers``.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ultrarefiner_monai.core.image_file import PICTURES, Geometry, ImageFile, Limits, extension, frame_axes
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging.label_pictures import from_picture
from ultrarefiner_monai.imaging.nifti import itk_reads, nifti_affine, open_nifti
from ultrarefiner_monai.imaging.nrrd import nrrd_affine, read_nrrd_array, read_nrrd_header
from ultrarefiner_monai.imaging.pictures import open_picture
from ultrarefiner_monai.imaging.placing import UNLIKE, fills, onto
from ultrarefiner_monai.imaging.writers import MASK_EXTENSIONS, write_bytes, write_mask
from ultrarefiner_monai.masks.label_values import check_share, from_numbers, from_segments, has_segments

logger = logging.getLogger(__name__)

# What a NRRD label may unpack to for each voxel of its image: 3D Slicer keeps segments that overlap in layers. And for
# tiny images.
MOST_BYTES, LEAST_BYTES = 16, 1 << 20


def read_mask(
    path: str | Path,
    image_file: ImageFile | None = None,
    limits: Limits | None = None,
    confirmed: bool = False,
    warnings: list[str] | None = None,
) -> np.ndarray:
    """A label file -> (T, H, W) uint8, 1 inside of the lesion; what its values and colours mean: ``label_values``.

    With ``image_file`` the label is brought to its frames: axes that were flipped or swapped, and the cropped extent that
    3D Slicer gives a .seg.nrrd, are undone by the two affines. A label without a usable position but of the same size
    is taken voxel by voxel. The image's own grid is then the limit: a larger label is refused before it is unpacked,
    and so is one that marks nearly all of a frame, unless it is ``confirmed``. warnings: gets what the user should know.
    Raises InputError for files that cannot be read, for values that are no label, and for sizes that do not fit.
    """
    path, limits, said = Path(path), limits or Limits(), [] if warnings is None else warnings
    if not path.is_file():
        raise InputError(f"{path.name}: no such file")
    known = len(said)
    mask = _read(path, image_file, limits, said)
    if image_file is not None:
        with _naming(path.name):
            check_share(mask, confirmed, said)
    for warning in said[known:]:
        logger.warning("%s: %s", path.name, warning)
    return mask


def decoder_words(error: Exception, path: Path) -> str:
    """A decoder's own words for a message, without the folders of the server."""
    words = str(error).replace(str(path), path.name).replace(str(path.resolve()), path.name)
    return type(error).__name__ if str(path.parent.resolve()) in words else f"{type(error).__name__}: {words}"


def _read(path: Path, image_file: ImageFile | None, limits: Limits, warnings: list[str]) -> np.ndarray:
    suffix = extension(path)
    try:
        if suffix in PICTURES:
            return _picture_mask(path, image_file, limits, warnings)
        if suffix in (".nii", ".nii.gz"):
            grid, affine, segments = _nifti_mask(path, image_file, limits)
        elif suffix in (".nrrd", ".seg.nrrd"):
            grid, affine, segments = _nrrd_mask(path, image_file, limits)
        else:
            raise InputError(f"{path.name}: expected a label as {' '.join(MASK_EXTENSIONS)}, got {suffix or 'none'}")
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path.name} cannot be read as a label: damaged or truncated ({decoder_words(error, path)})"
        ) from error
    if image_file is None:
        return Geometry(grid.shape, affine, frame_axes(grid.shape)).to_frames(grid)  # type: ignore[arg-type]
    if grid.size == 1 and not grid.any():
        return np.zeros(image_file.shape, np.uint8)  # 3D Slicer's way to write a segmentation without a voxel
    moved, warning = onto(grid, affine, image_file.geometry, segments)
    if moved is None:
        size, wanted = (_times(s) for s in (grid.shape, image_file.geometry.grid))
        raise InputError(
            f"{path.name} is {size} voxels and does not lie on its image of {wanted}: save it on the image's grid"
        )
    if warning:
        warnings.append(warning)
    return image_file.geometry.to_frames(moved)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Put the file's name in front of messages about its label."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{name}: {error}") from error


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


# --- pictures ---------------------------------------------------------------------------------------------------------


def _picture_mask(path: Path, image_file: ImageFile | None, limits: Limits, warnings: list[str]) -> np.ndarray:
    with open_picture(path, limits) as picture:
        count = len(picture.pages)
        if image_file is not None and count > image_file.n_frames:
            _require_size(path, (count, picture.image.height, picture.image.width), image_file)
        sizes = [page.size for page, _ in picture.frames()]  # nothing is decoded
        for width, height in sizes:
            _require_size(path, (count, height, width), image_file)
            if (width, height) != sizes[0]:
                raise InputError(f"{path.name} has pages of several sizes; expected one size, its image's")
        masks = np.zeros((count, sizes[0][1], sizes[0][0]), np.uint8)
        said: list[str] = []
        for index, (page, flip) in enumerate(picture.frames()):
            with _naming(path.name if count == 1 else f"{path.name}, page {index + 1}"):
                masks[index] = from_picture(page, said)[flip]
    warnings += sorted(set(said))
    return masks


def make_plain(path: str | Path, mask: np.ndarray, image_file: ImageFile) -> None:
    """Rewrite a label whose file other programs would not show on its image; all others stay as they are.

    Pictures: as 0 and 1 where their pixels are not the mask (palette, transparency, colours, soft edges), since 3D Slicer
    would show such a palette inverted, and transparency not at all. NIfTI and NRRD: on the image's grid where ITK (so 3D
    Slicer) would show them elsewhere, which ``read_mask`` took voxel by voxel, or does not read them. mask: what
    ``read_mask`` made of it, (T, H, W).
    """
    from PIL import Image

    if extension(path) not in PICTURES:
        if not _lies(Path(path), mask, image_file):
            write_mask(path, mask, image_file)
        return
    with open_picture(Path(path)) as picture:
        kind = picture.image.format
        plain = all(_is_plain(page, shown[flip]) for (page, flip), shown in zip(picture.frames(), mask, strict=True))
    if not plain:
        pages = [Image.fromarray(page) for page in mask]
        many: dict[str, Any] = {"save_all": True, "append_images": pages[1:]} if len(pages) > 1 else {}
        content = io.BytesIO()
        pages[0].save(content, kind, **many)
        write_bytes(path, content.getvalue())


def _lies(path: Path, mask: np.ndarray, image_file: ImageFile) -> bool:
    """Whether ITK reads a NIfTI or NRRD label, and shows the mask on the image's grid. By the headers, where they do."""
    nifti = extension(path) in (".nii", ".nii.gz")
    if nifti:
        image = open_nifti(path)
        shape, affine, seen = _grid3(image.shape, path), nifti_affine(image), itk_reads(image)
    else:
        header = read_nrrd_header(path)
        sizes = [int(n) for n in header["sizes"]]
        layer = _layer_axis(header, sizes)
        shape = _grid3([n for a, n in enumerate(sizes) if a != layer], path)
        affine = nrrd_affine(header, layer, len(sizes) - (layer is not None))
        seen = not str(header["encoding"]).lower().startswith("bz")
    if not seen or max(shape) == 1 or fills(shape, affine, image_file.geometry):
        return seen
    grid, affine, segments = (_nifti_mask if nifti else _nrrd_mask)(path, image_file, Limits())
    moved, warning = onto(grid, affine, replace(image_file.geometry, views=()), segments)
    return moved is not None and warning != UNLIKE and np.array_equal(image_file.geometry.to_frames(moved), mask)


def _is_plain(image: Any, mask: np.ndarray) -> bool:
    """Whether the stored numbers of a page are above 0 exactly where the mask (H, W) is."""
    if "transparency" in image.info or image.mode not in ("1", "L", "I", "I;16", "I;16B", "F"):
        return False
    if getattr(image, "tag_v2", {}).get(262) == 0:  # white is 0, in Pillow's eyes and not in ITK's
        return False
    return np.array_equal(np.asarray(image) > 0, mask > 0)


def _require_size(path: Path, shape: tuple[int, ...], image_file: ImageFile | None) -> None:
    if image_file is not None and shape != image_file.shape:
        (t, h, w), (st, sh, sw) = shape, image_file.shape
        raise InputError(f"{path.name} is {w} x {h} with {t} frame(s), its image is {sw} x {sh} with {st}")


# --- grids ------------------------------------------------------------------------------------------------------------


def _require_inside(path: Path, shape: Sequence[int], image_file: ImageFile | None) -> None:
    """InputError where the label is longer than its image in an axis, in whichever order it has them."""
    if image_file is None:
        return
    sizes, most = ([n for n in sorted(s, reverse=True) if n > 1] for s in (shape, image_file.geometry.grid))
    if len(sizes) > len(most) or any(n > m for n, m in zip(sizes, most, strict=False)):
        raise InputError(
            f"{path.name} is {_times(shape)} voxels and does not lie on its image of {_times(image_file.geometry.grid)}: "
            "it is longer. Save it on the image's grid"
        )


def _grid3(shape: Sequence[int], path: Path) -> tuple[int, int, int]:
    long = [n for n in shape[2:] if n > 1]
    if len(shape) < 2 or len(long) > 1 or min(shape) < 1:
        raise InputError(f"{path.name}: expected a label of 2 or 3 axes, got {tuple(shape)}")
    return (int(shape[0]), int(shape[1]), int(long[0]) if long else 1)


def _nifti_mask(path: Path, image_file: ImageFile | None, limits: Limits) -> tuple[np.ndarray, np.ndarray, bool]:
    """(mask (I, J, K), affine, whether it holds segments)."""
    image: Any = open_nifti(path, limits)
    if image.dataobj.dtype.kind not in "uif" or image.dataobj.dtype.itemsize > 8:
        raise InputError(f"{path.name}: expected numbers, got {image.dataobj.dtype}")
    shape = _grid3(image.shape, path)
    _require_inside(path, shape, image_file)
    if int(np.prod(shape, dtype=object)) > limits.total_pixels:
        raise InputError(f"{path.name}: {image.shape} is more than the limit of {limits.total_pixels} voxels")
    with _naming(path.name):
        return from_numbers(np.asanyarray(image.dataobj).reshape(shape)), nifti_affine(image), False


def _nrrd_mask(path: Path, image_file: ImageFile | None, limits: Limits) -> tuple[np.ndarray, np.ndarray, bool]:
    """As ``_nifti_mask``."""
    if image_file is not None:
        most = max(int(np.prod(image_file.shape, dtype=object)) * MOST_BYTES, LEAST_BYTES)
        limits = replace(limits, total_pixels=min(limits.total_pixels, most // 8))
    values, header = read_nrrd_array(path, limits)
    layer = _layer_axis(header, values.shape)
    shape = _grid3([n for a, n in enumerate(values.shape) if a != layer], path)
    _require_inside(path, shape, image_file)
    affine = nrrd_affine(header, layer, values.ndim - (layer is not None))
    layers = np.moveaxis(values, layer, 0) if layer is not None else values[None]
    with _naming(path.name):
        if has_segments(header) or (layer is not None and extension(path) == ".seg.nrrd"):
            return from_segments(layers, header).reshape(shape), affine, True
        if len(layers) > 1:
            raise InputError(
                f"its label has {len(layers)} components a voxel; expected one number, 0 or the lesion's. Save it as a "
                "labelmap, or as .seg.nrrd"
            )
        return from_numbers(layers[0]).reshape(shape), affine, extension(path) == ".seg.nrrd"


def _layer_axis(header: dict, sizes: Sequence[int]) -> int | None:
    """The axis along which 3D Slicer keeps the layers of segments that overlap, None where there is none."""
    kinds = [str(k) for k in header.get("kinds", [])]
    layer = next((a for a, kind in enumerate(kinds[: len(sizes)]) if kind in ("list", "vector")), None)
    return 0 if layer is None and len(sizes) == 4 and sizes[-1] > 1 else layer
