"""Moving pictures: every container and codec is the cine that went in, frame by frame, and hostile files are refused."""

from __future__ import annotations

import io
import struct
import sys
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import SimpleITK as sitk
from coded_file import card
from PIL import Image

from ultrarefiner_monai.core.image_file import luminance
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.imaging import moving, video
from ultrarefiner_monai.imaging.mask_files import read_mask
from ultrarefiner_monai.imaging.readers import Limits, read_image_file
from ultrarefiner_monai.imaging.writers import write_frames, write_mask

T = 12
COLOUR = np.stack([card(k) for k in range(T)])
GREY = luminance(COLOUR)
H, W = GREY.shape[1:]
# name, codec, pixel format, options, the mean difference that its coding may cost
CODINGS: list[tuple[str, str, str, dict[str, str], float]] = [
    ("a.mp4", "libx264", "yuv420p", {"crf": "1"}, 1.0),
    ("deep.mp4", "libx264", "yuv420p10le", {"crf": "1"}, 1.0),
    ("a.m4v", "mpeg4", "yuv420p", {"qmin": "1", "qmax": "2"}, 1.5),
    ("hevc.mp4", "libx265", "yuv420p", {"crf": "1", "x265-params": "log-level=none"}, 1.0),
    ("a.mov", "png", "rgb24", {}, 0.0),
    ("mjpeg.avi", "mjpeg", "yuvj420p", {"qmin": "1", "qmax": "2"}, 1.0),
    ("xvid.avi", "mpeg4", "yuv420p", {"qmin": "1", "qmax": "2"}, 1.5),
    ("raw.avi", "rawvideo", "bgr24", {}, 0.0),
    ("packed.avi", "rawvideo", "yuyv422", {}, 1.0),
    ("planar.avi", "rawvideo", "yuv420p", {}, 0.5),
    ("lossless.mkv", "ffv1", "gray", {}, 0.0),
    ("sixteen.mkv", "ffv1", "gray16le", {}, 0.0),
    ("vp9.webm", "libvpx-vp9", "yuv420p", {"crf": "4"}, 1.0),
    ("a.wmv", "wmv2", "yuv420p", {"qmin": "1", "qmax": "2"}, 1.5),
]


def film(path: Path, codec: str, form: str, options: dict[str, str], frames: Sequence[np.ndarray] = COLOUR) -> Path:
    """(T, H, W) or (T, H, W, 3) uint8 as a video; two formats keep grey, the others are coded as YCbCr or RGB."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = form
        for picture in frames:
            if form.startswith("gray"):
                grey = picture if picture.ndim == 2 else luminance(picture)
                wide = grey if form == "gray" else grey.astype(np.uint16) * 257
                frame = av.VideoFrame.from_ndarray(wide, format=form)
            else:
                rgb = picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, 2)
                frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def lossless(path: Path, frames: Sequence[np.ndarray] = GREY) -> Path:
    return film(path, "ffv1", "gray", {}, frames)


def animated(path: Path, frames: Sequence[np.ndarray] = GREY, **options: Any) -> Path:
    images = [Image.fromarray(f) for f in frames]
    if path.suffix == ".webp":
        images, options = [i.convert("RGB") for i in images], {"lossless": True, **options}
    images[0].save(path, save_all=True, append_images=images[1:], duration=40, **options)
    return path


def greys(image_file: Any) -> np.ndarray:
    return np.rint(image_file.frames * 255).astype(np.uint8)


# --- what is read -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "codec", "form", "options", "cost"), CODINGS, ids=[c[0] for c in CODINGS])
def test_every_coding_is_the_cine_that_went_in(
    tmp_path: Path, name: str, codec: str, form: str, options: dict[str, str], cost: float
) -> None:
    image_file = read_image_file(film(tmp_path / name, codec, form, options))
    assert (
        image_file.shape == (T, H, W)
        and image_file.kind == "video"
        and image_file.warnings == []
        and image_file.spacing_mm is None
    )
    assert image_file.geometry.grid == (W, H, T)
    # Beside the colour bars, whose luminance depends on the matrix of the video.
    difference = np.abs(image_file.frames[:, :, :100] * 255 - GREY[:, :, :100])
    assert difference.mean() <= cost
    if not cost:
        np.testing.assert_array_equal(greys(image_file), GREY)
    np.testing.assert_array_equal(image_file.frame(T - 1), image_file.frames[-1])


@pytest.mark.parametrize("name", ["a.gif", "a.GIF", "a.webp"])
def test_animations_are_the_cine_that_went_in(tmp_path: Path, name: str) -> None:
    image_file = read_image_file(animated(tmp_path / name.lower()).rename(tmp_path / name))
    assert image_file.shape == (T, H, W) and image_file.warnings == [] and image_file.kind == name.lower()[2:]
    np.testing.assert_array_equal(greys(image_file), GREY)
    single = read_image_file(animated(tmp_path / f"one{name}".lower(), GREY[:1]))
    assert single.shape == (1, H, W) and not single.is_volume
    np.testing.assert_array_equal(greys(single), GREY[:1])


@pytest.mark.parametrize("disposal", [0, 1, 2])
def test_frames_of_a_gif_are_composed_and_black_where_transparent(tmp_path: Path, disposal: int) -> None:
    spot = np.zeros((H, W, 4), np.uint8)
    spot[..., :3], spot[20:40, 30:60, 3] = 200, 255
    second = np.zeros((H, W, 4), np.uint8)
    second[..., :3], second[50:60, 30:60, 3] = 120, 255
    Image.fromarray(spot).save(
        tmp_path / "a.gif", save_all=True, append_images=[Image.fromarray(second)], disposal=disposal, optimize=False
    )
    frames = greys(read_image_file(tmp_path / "a.gif"))
    first, after = np.zeros((2, H, W), np.uint8)
    first[20:40, 30:60] = 200
    np.testing.assert_array_equal(frames[0], first)
    after[50:60, 30:60] = 120
    if disposal < 2:  # the frame before stays below
        after[20:40, 30:60] = 200
    np.testing.assert_array_equal(frames[1], after)


def test_an_animated_png_says_that_it_is_one(tmp_path: Path) -> None:
    image_file = read_image_file(animated(tmp_path / "a.png"))
    assert image_file.n_frames == 1 and any("animated" in w for w in image_file.warnings)


def test_frames_in_any_order_within_a_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = np.stack([np.roll(GREY[0], 3 * k, 1) for k in range(60)])
    for path in (lossless(tmp_path / "a.mkv", frames), animated(tmp_path / "a.gif", frames)):
        monkeypatch.setattr(moving, "_KEPT_BYTES", 5 * H * W)
        tracemalloc.start()
        try:
            image_file = read_image_file(path)
            assert tracemalloc.get_traced_memory()[0] < 30 * H * W and image_file.kept_bytes == 5 * H * W
        finally:
            tracemalloc.stop()
        for k in (59, 0, 30, 29, 28, 31, 7, 58, 1, 1):
            np.testing.assert_array_equal(np.rint(image_file.frame(k) * 255), frames[k])
        path.unlink()
        image_file.frame(45)  # the file is still open, but what lies before cannot be read again
        with pytest.raises(InputError, match=f"{path.name}: frame 20"):
            image_file.frame(20)


def test_clients_get_the_frames_on_the_masks_grid(tmp_path: Path) -> None:
    image_file = read_image_file(lossless(tmp_path / "a.mkv"))
    with (tmp_path / "a.nii.gz").open("wb") as file:
        write_frames(file, image_file)
    image = sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), GREY)
    mask = np.zeros(image_file.shape, np.uint8)
    mask[3, 20:30, 40:70] = 1
    for name in ("m.nrrd", "m.nii.gz"):
        write_mask(tmp_path / name, mask, image_file)
        shown = sitk.ReadImage(str(tmp_path / name))
        np.testing.assert_array_equal(sitk.GetArrayFromImage(shown), mask)
        for part in ("GetSize", "GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(shown, part)(), getattr(image, part)())
        np.testing.assert_array_equal(read_mask(tmp_path / name, image_file), mask)


# --- what is refused or said ------------------------------------------------------------------------------------------


def test_limits_hold_for_one_frame_and_for_all(tmp_path: Path) -> None:
    for path in (
        lossless(tmp_path / "a.mkv"),
        film(tmp_path / "a.avi", *CODINGS[7][1:4]),
        animated(tmp_path / "a.gif"),
    ):
        assert read_image_file(path, Limits(total_pixels=T * H * W)).n_frames == T
        for limits in (Limits(total_pixels=T * H * W - 1), Limits(frame_pixels=H * W - 1)):
            with pytest.raises(InputError, match="more than the limit"):
                read_image_file(path, limits)


def test_a_gif_may_not_announce_a_screen_of_any_size(tmp_path: Path) -> None:
    content = bytearray(animated(tmp_path / "a.gif").read_bytes())
    content[6:10] = struct.pack("<HH", 65535, 65535)
    (tmp_path / "a.gif").write_bytes(content)
    with pytest.raises(InputError, match="limit"):
        read_image_file(tmp_path / "a.gif")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("films")
    found = [film(folder / name, codec, form, options) for name, codec, form, options, _ in CODINGS]
    return [*found, animated(folder / "a.gif"), animated(folder / "a.webp")]


@pytest.mark.parametrize("part", [0.02, 0.3, 0.6, 0.93])
def test_truncated_files_are_refused_or_it_is_said(samples: list[Path], tmp_path: Path, part: float) -> None:
    for path in samples:
        content = path.read_bytes()
        cut = tmp_path / path.name
        cut.write_bytes(content[: int(part * len(content))])
        try:
            image_file = read_image_file(cut)
        except InputError as error:
            assert path.name in str(error) and str(tmp_path) not in str(error)
            continue
        assert image_file.n_frames == T or image_file.warnings, path.name


def test_damaged_bytes_never_end_in_another_error(samples: list[Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for path in samples:
        content = path.read_bytes()
        for _ in range(12):
            spoiled = bytearray(content)
            for at in rng.integers(0, len(content) if rng.random() < 0.5 else 800, rng.integers(1, 30)):
                spoiled[at % len(content)] = rng.integers(256)
            (tmp_path / path.name).write_bytes(spoiled)
            try:
                read_image_file(tmp_path / path.name, Limits(total_pixels=10_000_000)).frame(0)
            except InputError:
                pass


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{0}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{0}'\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


@pytest.mark.parametrize("kind", list(PLAYLISTS))
@pytest.mark.parametrize("name", ["x.mp4", "x.avi", "x.mkv", "x.wmv", "x.mov", "x.webm"])
def test_a_list_of_other_files_is_no_video(tmp_path: Path, kind: str, name: str) -> None:
    other = lossless(tmp_path / "other.mkv")
    (tmp_path / name).write_text(PLAYLISTS[kind].format(other))
    with pytest.raises(InputError, match="cannot be opened as a video"):
        read_image_file(tmp_path / name)


def test_a_name_that_lies_about_the_container(samples: list[Path], tmp_path: Path) -> None:
    avi = next(p for p in samples if p.suffix == ".avi")
    (tmp_path / "a.mp4").write_bytes(avi.read_bytes())
    with pytest.raises(InputError, match="not what its name says"):
        read_image_file(tmp_path / "a.mp4")


@pytest.mark.parametrize(("each", "count"), [(1, 2**31 - 1), (0, 2**31 - 1), (1, 2**26), (2**31, 2)])
def test_an_index_may_not_announce_more_than_the_file_holds(tmp_path: Path, each: int, count: int) -> None:
    content = film(tmp_path / "a.mp4", *CODINGS[0][1:4]).read_bytes()
    at = content.index(b"stsz") + 8
    (tmp_path / "a.mp4").write_bytes(content[:at] + struct.pack(">II", each, count) + content[at + 8 :])
    with pytest.raises(InputError, match="index announces"):
        read_image_file(tmp_path / "a.mp4")


def test_what_the_header_says_of_its_length_is_not_believed(tmp_path: Path) -> None:
    content = film(tmp_path / "a.mp4", *CODINGS[0][1:4]).read_bytes()
    at = content.index(b"stts") + 12
    for count in (2, 40, 2**31 - 1):
        (tmp_path / "a.mp4").write_bytes(content[:at] + struct.pack(">I", count) + content[at + 4 :])
        image_file = read_image_file(tmp_path / "a.mp4")
        assert image_file.n_frames == T and any("announces" in w for w in image_file.warnings) == (count > T)


def test_a_rotation_is_not_applied_and_said(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4", *CODINGS[0][1:4])
    upright, content = read_image_file(path), path.read_bytes()
    at = content.index(b"tkhd") + 44  # the matrix of a track's header
    matrix = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:at] + matrix + content[at + 36 :])
    image_file = read_image_file(path)
    np.testing.assert_array_equal(image_file.frames, upright.frames)
    assert not upright.warnings and any("rotation" in w for w in image_file.warnings)


def test_frames_of_another_size_are_left_out_with_a_warning(tmp_path: Path) -> None:
    small, large = (film(tmp_path / f"{k}.mkv", "mjpeg", "yuvj420p", {}, COLOUR[:3, :n]) for k, n in ((0, 48), (1, H)))
    with av.open(str(tmp_path / "both.mkv"), "w") as out:
        stream, start = None, 0
        for source in (small, large):
            with av.open(str(source)) as container:
                if stream is None:
                    stream = out.add_stream_from_template(container.streams.video[0])
                for k, packet in enumerate(p for p in container.demux(video=0) if p.size):
                    packet.stream, packet.pts, packet.dts = stream, start + 40 * k, start + 40 * k
                    out.mux(packet)
            start += 120
    image_file = read_image_file(tmp_path / "both.mkv")
    assert image_file.shape == (3, 48, W) and any("3 frame(s) of another size" in w for w in image_file.warnings)


def test_without_the_extra_a_video_is_refused_with_advice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, gif = lossless(tmp_path / "a.mkv"), animated(tmp_path / "a.gif")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"a.mkv .*pip install 'ultrarefiner_monai\[video\]'"):
        read_image_file(path)
    assert read_image_file(gif).n_frames == T


def test_a_file_without_pictures(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        for packet in (*stream.encode(frame), *stream.encode()):
            container.mux(packet)
    with pytest.raises(InputError, match="holds no video"):
        read_image_file(tmp_path / "a.mkv")
    (tmp_path / "a.gif").write_bytes(io.BytesIO(b"GIF89a").getvalue())
    with pytest.raises(InputError, match="a.gif"):
        read_image_file(tmp_path / "a.gif")


def test_the_time_to_decode_is_bounded_and_pauses_between_frames_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moving, "_KEPT_BYTES", 1)  # each frame is decoded when it is asked for
    monkeypatch.setattr(video, "_SECONDS", 0.5)
    image_file = read_image_file(lossless(tmp_path / "a.avi"))
    image_file.frame(0)
    time.sleep(0.6)
    np.testing.assert_array_equal(np.rint(image_file.frame(1) * 255), GREY[1])
    monkeypatch.setattr(video, "_SECONDS", -1.0)
    with pytest.raises(InputError, match="takes longer"):
        read_image_file(tmp_path / "a.avi")
