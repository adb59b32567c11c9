"""Weights by name: a real HTTP server on the loopback, real files, nothing from outside."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ultrarefiner_monai.config import SamConfig
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.weights import pretrained as weights
from ultrarefiner_monai.models.weights.download import FetchError, only_one
from ultrarefiner_monai.models.weights.known import KNOWN, WeightFile


@dataclass
class Host:
    """What the server offers and how it misbehaves. cuts: after how many bytes each coming connection breaks."""

    data: bytes = b""
    etag: str = '"one"'
    cuts: list[int] = field(default_factory=list)
    status: int | None = None
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def host() -> Iterator[Host]:
    state = Host()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.ranges.append(wanted)
            if state.status is not None:
                self.send_error(state.status)
                return
            start = 0
            if wanted and self.headers.get("If-Range", state.etag) == state.etag:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                if start >= len(state.data):
                    self.send_error(416)
                    return
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {start}-{len(state.data) - 1}/{len(state.data)}")
            else:
                self.send_response(200)
            body = state.data[start:]
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", state.etag)
            self.end_headers()
            self.wfile.write(body[: state.cuts.pop(0)] if state.cuts else body)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/file"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


def npz_bytes(folder: Path, **arrays: np.ndarray) -> bytes:
    path = folder / "made.npz"
    np.savez(path, **(arrays or {"embedding/kernel": np.arange(3_000_000, dtype=np.float32)}))
    return path.read_bytes()


def entry_for(host: Host, **changes: object) -> dict[str, WeightFile]:
    entry = WeightFile(
        "vit", "ViT.npz", host.url, "none", "a test", "npz", len(host.data), hashlib.sha256(host.data).hexdigest()
    )
    return {"vit": replace(entry, **changes)}  # type: ignore[arg-type]


def files_in(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir() if not p.name.endswith(".lock")} if folder.is_dir() else set()


def test_registry_is_complete_and_well_formed() -> None:
    assert set(KNOWN) == {"sam_vit_b", "sam_vit_l", "sam_vit_h", "medsam_vit_b", "ultrasam", "r50_vit_b16_npz"}
    for entry in KNOWN.values():
        assert entry.url.startswith("https://") and entry.licence and entry.file.endswith((".pth", ".npz"))
        assert entry.sha256 is None or (len(entry.sha256) == 64 and int(entry.sha256, 16) > 0)
    assert len({entry.file for entry in KNOWN.values()}) == len(KNOWN)


def test_folder_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ULTRAREFINER_WEIGHTS", str(tmp_path / "here"))
    assert weights.weights_folder() == tmp_path / "here"
    assert all(row.path is None for row in weights.list_weights())
    assert not (tmp_path / "here").exists()


def test_fetch_downloads_checks_and_reports_progress(tmp_path: Path, host: Host) -> None:
    host.data = npz_bytes(tmp_path)
    seen: list[tuple[int, int | None]] = []
    path = weights.fetch("vit", tmp_path / "w", lambda have, total: seen.append((have, total)), entry_for(host))
    assert path.read_bytes() == host.data
    assert files_in(tmp_path / "w") == {"ViT.npz", "ViT.npz.json"}
    assert seen[-1] == (len(host.data), len(host.data)) and sorted(seen) == seen
    weights.fetch("vit", tmp_path / "w", known=entry_for(host))
    assert len(host.ranges) == 1, "what is here is not fetched again"


def test_a_cut_connection_is_resumed_where_it_broke(tmp_path: Path, host: Host) -> None:
    host.data = npz_bytes(tmp_path)
    host.cuts = [5_000_000, 2_500_000]
    path = weights.fetch("vit", tmp_path / "w", known=entry_for(host))
    assert path.read_bytes() == host.data
    assert host.ranges == [None, "bytes=5000000-", "bytes=7500000-"]


def test_an_interrupted_fetch_goes_on_next_time(tmp_path: Path, host: Host) -> None:
    host.data = npz_bytes(tmp_path)

    def stop(have: int, total: int | None) -> None:
        if have > 4_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        weights.fetch("vit", tmp_path / "w", stop, entry_for(host))
    begun = (tmp_path / "w" / "ViT.npz.part").stat().st_size
    assert 0 < begun < len(host.data) and not (tmp_path / "w" / "ViT.npz").exists()
    path = weights.fetch("vit", tmp_path / "w", known=entry_for(host))
    assert path.read_bytes() == host.data and host.ranges[1] == f"bytes={begun}-"


def test_another_version_on_the_host_is_not_mixed_with_the_old_part(tmp_path: Path, host: Host) -> None:
    new = npz_bytes(tmp_path)
    host.data, host.cuts = bytes(len(new)), [5_000_000]
    known = {"vit": WeightFile("vit", "ViT.npz", host.url, "none", "a test", "npz")}

    def swap(have: int, total: int | None) -> None:
        host.data, host.etag = new, '"two"'

    assert weights.fetch("vit", tmp_path / "w", swap, known).read_bytes() == new


def test_wrong_checksum_is_refused_and_not_kept(tmp_path: Path, host: Host) -> None:
    host.data = npz_bytes(tmp_path)
    with pytest.raises(InputError, match="sha256"):
        weights.fetch("vit", tmp_path / "w", known=entry_for(host, sha256="0" * 64))
    assert files_in(tmp_path / "w") == set()


def test_without_published_checksum_the_first_is_pinned(
    tmp_path: Path, host: Host, caplog: pytest.LogCaptureFixture
) -> None:
    host.data = npz_bytes(tmp_path)
    known = entry_for(host, sha256=None, size=None)
    path = weights.fetch("vit", tmp_path / "w", known=known)
    digest = hashlib.sha256(host.data).hexdigest()
    assert "trusted on first use" in caplog.text and digest in caplog.text
    assert weights.list_weights(tmp_path / "w", known)[0].sha256 == digest
    path.unlink()
    host.data = npz_bytes(tmp_path, **{"embedding/kernel": np.ones(5)})
    with pytest.raises(InputError, match="pinned on first use"):
        weights.fetch("vit", tmp_path / "w", known=known)


def test_an_error_page_instead_of_weights_is_not_trusted(tmp_path: Path, host: Host) -> None:
    host.data = b"<html>please log in</html>"
    with pytest.raises(InputError, match="npz"):
        weights.fetch("vit", tmp_path / "w", known=entry_for(host, sha256=None, size=None))
    assert files_in(tmp_path / "w") == set()


@pytest.mark.parametrize("status", [404, 503])
def test_a_refusing_host_is_named(tmp_path: Path, host: Host, status: int) -> None:
    host.data, host.status = npz_bytes(tmp_path), status
    with pytest.raises(FetchError, match=str(status)):
        weights.fetch("vit", tmp_path / "w", known=entry_for(host))


def test_offline_says_what_to_do(tmp_path: Path, host: Host) -> None:
    known = entry_for(host, url="http://127.0.0.1:9/closed", size=None, sha256=None)
    with pytest.raises(FetchError, match=r"offline.*weights add ViT\.npz"):
        weights.fetch("vit", tmp_path / "w", known=known)


def test_unknown_name_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="sam_vit_b"):
        weights.fetch("sam_vit_x", tmp_path)
    with pytest.raises(InputError, match="ultrasam"):
        weights.resolve("sam_vit_x", tmp_path)


def test_resolve_tells_how_to_get_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights fetch sam_vit_b"):
        weights.resolve("sam_vit_b", tmp_path)


def test_a_file_brought_by_hand_is_recognised_by_its_checksum(tmp_path: Path, host: Host) -> None:
    host.data = npz_bytes(tmp_path)
    brought = tmp_path / "renamed by hand.npz"
    brought.write_bytes(host.data)
    path = weights.add(brought, folder=tmp_path / "w", known=entry_for(host))
    assert path.name == "ViT.npz" and path == weights.resolve("vit", tmp_path / "w", entry_for(host))
    assert json.loads((tmp_path / "w" / "ViT.npz.json").read_text())["sha256"] == entry_for(host)["vit"].sha256
    assert not host.ranges


def test_a_file_put_into_the_folder_is_checked_when_used(tmp_path: Path, host: Host) -> None:
    host.data = npz_bytes(tmp_path)
    (tmp_path / "w").mkdir()
    target = tmp_path / "w" / "ViT.npz"
    target.write_bytes(host.data)
    assert weights.resolve("vit", tmp_path / "w", entry_for(host)) == target
    target.write_bytes(host.data[:-100])
    with pytest.raises(InputError, match="bytes"):
        weights.resolve("vit", tmp_path / "w", entry_for(host))


def test_a_wrong_file_under_a_known_name_is_refused(tmp_path: Path, host: Host) -> None:
    host.data = npz_bytes(tmp_path)
    other = tmp_path / "ViT.npz"
    other.write_bytes(npz_bytes(tmp_path, **{"embedding/kernel": np.ones(3)}))
    with pytest.raises(InputError, match="refused"):
        weights.add(other, folder=tmp_path / "w", known=entry_for(host))
    assert not (tmp_path / "w" / "ViT.npz").exists()


@pytest.mark.parametrize("name", ["junk.pth", "junk.npz", "junk.safetensors", "junk.exe"])
def test_junk_is_refused(tmp_path: Path, name: str) -> None:
    junk = tmp_path / name
    junk.write_bytes(b"no weights at all" * 100)
    with pytest.raises(InputError):
        weights.add(junk, folder=tmp_path / "w")
    assert files_in(tmp_path / "w") == set()


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "boom",))

    torch.save({"image_encoder.x": Bomb()}, tmp_path / "bomb.pth")
    np.savez(tmp_path / "bomb.npz", **{"embedding/kernel": np.array([Bomb()], dtype=object)})
    with pytest.raises(InputError):
        weights.add(tmp_path / "bomb.pth", folder=tmp_path / "w")
    weights_folder = tmp_path / "w"
    (tmp_path / "boom").unlink(missing_ok=True)
    with pytest.raises(InputError):
        weights.add(tmp_path / "bomb.npz", folder=weights_folder)
    assert not (tmp_path / "boom").exists()


def test_sam_weights_of_ones_own_get_a_name(tmp_path: Path) -> None:
    sam_module = pytest.importorskip("ultrarefiner_monai.models.sam.network")
    config = SamConfig(arch="compact", image_size=64, embed_dim=32, depth=1, num_heads=2, global_attn_indexes=(0,))
    torch.save(sam_module.build_sam(config).state_dict(), tmp_path / "best.pth")
    path = weights.add(tmp_path / "best.pth", name="ward7", folder=tmp_path / "w")
    assert path.name == "ward7.pth" and weights.resolve("ward7", tmp_path / "w") == path
    assert [row.name for row in weights.list_weights(tmp_path / "w")][-1] == "ward7"
    with pytest.raises(InputError, match="name"):
        weights.add(tmp_path / "best.pth", name="../ward7", folder=tmp_path / "w")


def test_resolve_takes_a_plain_path(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"x")
    assert weights.resolve(path, tmp_path / "w") == path


def test_only_one_process_fetches_a_file(tmp_path: Path, host: Host) -> None:
    host.data = npz_bytes(tmp_path)
    (tmp_path / "w").mkdir()
    with only_one(tmp_path / "w" / "ViT.npz.part"), pytest.raises(FetchError, match=r"another process .* ViT\.npz"):
        weights.fetch("vit", tmp_path / "w", known=entry_for(host))
    assert weights.fetch("vit", tmp_path / "w", known=entry_for(host)).is_file()


def test_a_folder_that_cannot_be_locked_is_said_as_it_is(tmp_path: Path, host: Host) -> None:
    (tmp_path / "w" / "ViT.npz.part.lock").mkdir(parents=True)
    with pytest.raises(FetchError, match=r"cannot lock .*ViT\.npz\.part\.lock: Is a directory"):
        weights.fetch("vit", tmp_path / "w", known=entry_for(host))


def test_a_failure_is_said_in_few_words(tmp_path: Path, host: Host) -> None:
    known = entry_for(host, url="http://127.0.0.1:9/closed", size=None, sha256=None)
    with pytest.raises(FetchError, match=r"closed: \[Errno \d+\] Connection refused\. Is this"):
        weights.fetch("vit", tmp_path / "w", known=known)
    host.data, host.status = npz_bytes(tmp_path), 503
    with pytest.raises(FetchError, match=r"HTTP Error 503: Service Unavailable\. Is this"):
        weights.fetch("vit", tmp_path / "w", known=entry_for(host))
