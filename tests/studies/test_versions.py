"""The labels before: counted on from the newest, the last few kept."""

from __future__ import annotations

from pathlib import Path

from ultrarefiner_monai.core.files import all_or_nothing
from ultrarefiner_monai.studies.versions import Versions
from ultrarefiner_monai.studies.work_folder import WorkFolder


def keep(versions: Versions, label: Path, content: bytes) -> None:
    label.unlink(missing_ok=True)  # a label is replaced, never changed: a version may be a link to it
    label.write_bytes(content)
    with all_or_nothing() as undo:
        versions.keep(undo, versions.next_of("a", "final", [label, label.with_name("a.nrrd")]))


def test_the_last_twenty_are_kept_in_their_order(tmp_path: Path) -> None:
    versions = Versions(WorkFolder.of(tmp_path))
    for k in range(25):
        keep(versions, tmp_path / "a.nii.gz", b"%d" % k)
        versions.prune("a", "final")
    files = sorted(versions.folder("a", "final").iterdir())
    assert [path.name for path in files] == [f"v{k:06d}.nii.gz" for k in range(6, 26)]
    assert [path.read_bytes() for path in files] == [b"%d" % k for k in range(5, 25)]


def test_times_as_names_are_older_and_empty_files_are_none(tmp_path: Path) -> None:
    versions = Versions(WorkFolder.of(tmp_path))
    folder = versions.folder("a", "final")
    folder.mkdir(parents=True)
    (folder / "1700000000000000000.png").write_bytes(b"old")
    (folder / "v000007.png").write_bytes(b"")
    assert versions.name("a", "final", ".nrrd") == "v000008.nrrd"
    assert versions.name("a", "final", ".nrrd", further=1) == "v000009.nrrd"
    versions.prune("a", "final")
    assert [path.name for path in folder.iterdir()] == ["1700000000000000000.png"]
