"""A sound file of every kind that the readers know, small: what the mutations start from."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path

import nibabel
import nrrd
import numpy as np
from codings import every_coding
from PIL import Image

from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.imaging.writers import encode_mask

HEIGHT, WIDTH, FRAMES = 40, 56, 3
LABELS = (".nrrd", ".seg.nrrd", ".nii.gz", ".nii", ".png")


def picture(seed: int = 0) -> np.ndarray:
    return make_phantom(np.random.default_rng(seed), HEIGHT, WIDTH, "benign").image


def mask(frames: int = 1) -> np.ndarray:
    found = make_phantom(np.random.default_rng(0), HEIGHT, WIDTH, "benign").mask.astype(np.uint8)
    return np.repeat(found[None], frames, axis=0)


def images() -> dict[str, bytes]:
    """File name -> content: pictures, volumes, DICOM in native and compressed codings, cine."""
    grey = Image.fromarray(picture())
    found = {
        "grey.png": _encoded(grey, "PNG"),
        "spaced.png": _encoded(grey, "PNG", dpi=(254, 254)),
        "palette.png": _encoded(grey.convert("P"), "PNG"),
        "alpha.png": _encoded(grey.convert("RGBA"), "PNG"),
        "deep.png": _encoded(Image.fromarray(picture().astype(np.uint16) * 200), "PNG"),
        "grey.jpg": _encoded(grey, "JPEG"),
        "grey.tif": _encoded(grey, "TIFF"),
        "packed.tif": _encoded(grey, "TIFF", compression="tiff_deflate"),
        "lzw.tif": _encoded(grey, "TIFF", compression="tiff_lzw"),
        "pages.tif": _encoded(grey, "TIFF", save_all=True, append_images=[Image.fromarray(picture(1))]),
        "grey.bmp": _encoded(grey, "BMP"),
        "frame.dcm": dicom_bytes(picture()[None], 1, 0.1),
        "screen.dcm": dicom_bytes(picture()[None], 2, 0.1, regions=[(2, 2, 50, 30, "tissue")]),
        "cine.dcm": dicom_bytes(np.stack([picture(k) for k in range(FRAMES)]), 3, 0.1),
    }
    flat, volume = picture().T[..., None], np.stack([picture(k).T for k in range(FRAMES)], -1)
    for name, values in (("flat.nii", flat), ("flat.nii.gz", flat), ("volume.nii.gz", volume)):
        found[name] = _written(
            name, lambda path, v=values: nibabel.save(nibabel.Nifti1Image(v, np.diag([0.1, 0.1, 1, 1])), path)
        )
    space = {"space": "left-posterior-superior", "space directions": np.diag([0.1, 0.1, 1]), "space origin": [1, 2, 3]}
    for name, encoding in (("raw.nrrd", "raw"), ("packed.nrrd", "gzip")):
        header = {**space, "encoding": encoding}
        found[name] = _written(name, lambda path, h=header: nrrd.write(str(path), volume, h))
    return found | _coded() | _moving(grey)


def labels() -> dict[str, bytes]:
    """File name -> content: a mask of ``frame.dcm``, and of ``cine.dcm``, in every format that is taken."""
    found = {}
    for name, frames in (("frame", 1), ("cine", FRAMES)):
        image_file = _image_file(f"{name}.dcm")
        for suffix in LABELS:
            if frames == 1 or suffix != ".png":
                found[f"{name}{suffix}"] = encode_mask(suffix, mask(frames), image_file)
    return found


def _image_file(name: str):
    """The image file that labels are drawn on."""
    frames = np.stack([picture(k) for k in range(FRAMES if name == "cine.dcm" else 1)])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.write_bytes(dicom_bytes(frames, 1, 0.1))
        image_file = read_image_file(path)
        image_file.frame(0)
        return image_file


def _coded() -> dict[str, bytes]:
    """One DICOM file of each transfer syntax that is read."""
    found: dict[str, bytes] = {}
    for coded in every_coding():
        name = "".join(c if c.isalnum() else "-" for c in coded.syntax.lower())
        if coded.expected is not None:
            found.setdefault(f"{name}.dcm", coded.content)
    return found


def _moving(grey: Image.Image) -> dict[str, bytes]:
    """Animated pictures and video, where they are read."""
    more = [Image.fromarray(picture(k)) for k in range(1, FRAMES)]
    found = {"moving.gif": _encoded(grey, "GIF", save_all=True, append_images=more)}
    try:
        import av
    except ImportError:
        return found
    for name, codec in (("moving.mp4", "mpeg4"), ("moving.avi", "mjpeg")):
        found[name] = _written(name, lambda path, c=codec: _video(av, path, c))
    return found


def _video(av, path: Path, codec: str) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for k in range(FRAMES):
            rgb = np.repeat(picture(k)[..., None], 3, axis=2)
            for packet in stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


def _encoded(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _written(name: str, write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        write(path)
        return path.read_bytes()
