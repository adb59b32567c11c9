"""Sizes that a compressed stream tells of itself."""

from __future__ import annotations

import struct
import time
from pathlib import Path

import pytest
from coded_file import HEIGHT, WIDTH
from codings import Coded, every_coding

from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.dicom.codestreams import check_stream
from ultrarefiner_monai.imaging.readers import read_image_file

JPEG_2000 = [c for c in every_coding() if c.expected is not None and b"\xff\x4f\xff\x51" in c.content]
JPEG = [c for c in every_coding() if c.expected is not None and b"\xff\xd8\xff" in c.content]


@pytest.mark.parametrize("coded", [*JPEG_2000, *JPEG], ids=lambda c: c.name)
def test_streams_of_the_headers_size_pass(coded: Coded) -> None:
    check_stream(coded.content[coded.content.rfind(b"\xe0\x7f\x10\x00") :], HEIGHT, WIDTH)
    with pytest.raises(ValueError, match="the header says"):
        check_stream(coded.content, HEIGHT + 1, WIDTH)


@pytest.mark.parametrize("coded", JPEG_2000, ids=lambda c: c.name)
def test_a_stream_that_says_to_be_huge_is_refused_before_it_is_unpacked(tmp_path: Path, coded: Coded) -> None:
    """OpenJPEG believes it, for as long as it takes, and no other thread runs meanwhile."""
    at = coded.content.find(b"\xff\x4f\xff\x51")
    huge = coded.content[: at + 12] + struct.pack(">I", HEIGHT + (1 << 21)) + coded.content[at + 16 :]
    (tmp_path / "huge.dcm").write_bytes(huge)
    begin = time.process_time()
    with pytest.raises(InputError, match="the header says"):
        read_image_file(tmp_path / "huge.dcm").frame(0)
    assert time.process_time() - begin < 2
