"""One ultrasound picture as a DICOM file in a given coding: its pixels as each photometric interpretation stores them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ultrarefiner_monai.core.image_file import luminance

HEIGHT, WIDTH = 96, 144
NATIVE = {
    "Implicit VR Little Endian": "1.2.840.10008.1.2",
    "Explicit VR Little Endian": "1.2.840.10008.1.2.1",
    "Explicit VR Big Endian": "1.2.840.10008.1.2.2",
    "Deflated Explicit VR Little Endian": "1.2.840.10008.1.2.1.99",
}


def card(frame: int = 0) -> np.ndarray:
    """(H, W, 3) uint8: smooth grey with a dark lesion, and saturated colour bars as of a Doppler scale."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    grey = 90 + 60 * np.sin((x + 8 * frame) / 17) * np.cos(y / 13)
    grey[np.hypot(y - 50, (x - 50) / 1.5) < 14] *= 0.3
    image = np.repeat(grey[..., None], 3, axis=2)
    for k, colour in enumerate([(220, 20, 20), (20, 200, 40), (30, 40, 230), (240, 230, 30)]):
        image[16 + 16 * k : 32 + 16 * k, 112:136] = colour
    return np.rint(image).astype(np.uint8)


def ybr(rgb: np.ndarray, partial: bool = False) -> np.ndarray:
    """(..., 3) uint8 RGB -> YCbCr, full range or Y in 16 to 235."""
    matrix = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    out = rgb @ matrix.T
    if partial:
        out *= np.array([219, 224, 224]) / 255
        out[..., 0] += 16
    out[..., 1:] += 128
    return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def dicom(uid: str, photometric: str, pixels: np.ndarray, streams: list[bytes] | None = None, **values: Any) -> bytes:
    """An ultrasound file. pixels: as stored, or (compressed: ``streams``) one frame to describe."""
    from pydicom import FileDataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset, write_file_meta_info

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.6.1"
    meta.MediaStorageSOPInstanceUID = "1.2.826.0.1.3680043.8.498.1"
    meta.TransferSyntaxUID = uid
    is_little = uid != NATIVE["Explicit VR Big Endian"]
    ds: Any = FileDataset(
        "", {}, file_meta=meta, preamble=b"\0" * 128, is_implicit_VR=False, is_little_endian=is_little
    )
    ds.SOPClassUID, ds.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    ds.Modality, ds.PatientID, ds.Rows, ds.Columns = "US", "CARD", HEIGHT, WIDTH
    grey = photometric.startswith(("MONO", "PALETTE"))
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1 if grey else 3, photometric
    if not grey:
        ds.PlanarConfiguration = 0
    bits = 8 * pixels.dtype.itemsize
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = bits, bits, bits - 1, 0
    for keyword, value in values.items():
        if keyword.endswith("TableData") and not is_little and values[keyword[:-4] + "Descriptor"][2] == 16:
            value = np.frombuffer(value, "<u2").astype(">u2").tobytes()
        setattr(ds, keyword, value)
        if ds[keyword].VR == "US or SS":
            ds[keyword].VR = "US"
    if streams is None:
        stored = pixels if is_little else pixels.astype(pixels.dtype.newbyteorder(">"))
        ds.PixelData = stored.tobytes() + b"\0" * (pixels.nbytes % 2)
    else:
        ds.PixelData = encapsulate(streams)
    ds["PixelData"].VR = "OB" if bits == 8 or streams is not None else "OW"
    ds["PixelData"].is_undefined_length = streams is not None
    out = DicomBytesIO()
    if uid in NATIVE.values():
        ds.save_as(out, enforce_file_format=True)
        return out.getvalue()
    out.is_little_endian, out.is_implicit_VR = True, False
    out.write(ds.preamble + b"DICM")  # by hand: pydicom writes no syntax that it does not know
    write_file_meta_info(out, meta, enforce_standard=True)
    write_dataset(out, ds)
    return out.getvalue()


def half(values: np.ndarray) -> np.ndarray:
    """(H, W, 3) YCbCr -> (H, W / 2, 4): Y Y Cb Cr of each pair of pixels, the colour of the left one."""
    return np.concatenate([values[:, 0::2, :1], values[:, 1::2, :1], values[:, 0::2, 1:]], axis=2)


def palette(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(indices, the grey that the tables make of them): a warm tint, as some scanners colour the picture."""
    table = np.stack([_tint(c) for c in range(3)], axis=1)
    return grey, luminance(table[grey])[None]


def _tint(channel: int) -> np.ndarray:
    return np.rint(np.linspace(0, (255, 225, 180)[channel], 256)).astype(np.uint8)


def tables(bits: int) -> dict[str, Any]:
    """The header's values for ``palette``'s tables, of 8- or 16-bit entries."""
    values: dict[str, Any] = {}
    for channel, colour in enumerate(("Red", "Green", "Blue")):
        values[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, bits]
        data = _tint(channel) if bits == 8 else _tint(channel).astype("<u2") * 256
        values[f"{colour}PaletteColorLookupTableData"] = data.tobytes()
    return values
