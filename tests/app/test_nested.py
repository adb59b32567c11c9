"""A studies folder of folders, as they come from discs and PACS exports: what is offered, and what clients see of it."""

from __future__ import annotations

import time
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
from app_server import APP, picture
from monailabel.interfaces.exception import ImageNotFoundException

from lib.store.datastore import StudiesFolder
from ultrarefiner_monai.config import ServeConfig, load_yaml
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file
from ultrarefiner_monai.studies.corrections import final_labels
from ultrarefiner_monai.studies.work_folder import WorkFolder


def put(path: Path, instance: int = 1) -> str:
    import pydicom

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(dicom_bytes(picture(instance)[None], 1, 0.08, instance=instance))
    return str(pydicom.dcmread(path, stop_before_pixels=True).SOPInstanceUID)


@pytest.fixture
def disc(tmp_path: Path) -> tuple[Path, str]:
    root = tmp_path / "studies"
    uid = put(root / "DOE^JANE" / "Übersicht" / "IM 0001")
    put(root / "DICOMDIR", 2)
    put(root / "top.dcm", 3)
    return root, uid


def make_store(studies: Path, auto_reload: bool = False) -> StudiesFolder:
    extensions = load_yaml(ServeConfig, APP / "config.yaml").extensions
    return StudiesFolder(str(studies), WorkFolder.of(studies), extensions, read_image_file, auto_reload)


def label_at(path: Path) -> Path:
    nibabel.save(nibabel.Nifti1Image(np.ones((130, 96, 1), np.uint8), np.eye(4)), path)
    return path


def test_folders_below_are_offered_by_uid_and_no_name_leaves(disc: tuple[Path, str], tmp_path: Path) -> None:
    root, uid = disc
    store = make_store(root)
    assert set(store.list_images()) == {"top", uid}
    assert store.image_path(uid).samefile(root / "DOE^JANE" / "Übersicht" / "IM 0001") and store.is_readable(uid)
    uri = Path(store.get_image_uri(uid))
    assert uri == store.image_path(uid) and uri.name == f"{uid}.dcm"
    assert "DOE" not in str(store.get_image_info(uid)) + str(store.json()) + str(uri)
    assert read_image_file(uri).shape == (1, 96, 130)
    store.save_label(uid, str(label_at(tmp_path / "l.nii.gz")), "final", {})
    with zipfile.ZipFile(store.get_dataset_archive(None)) as archive:
        assert set(archive.namelist()) == {f"image/{uid}.dcm", f"label/{uid}.nii.gz", "metadata.json"}
    assert [(p.image_id, p.image) for p in final_labels(root / ".ultrarefiner")] == [(uid, store.image_path(uid))]


def test_messages_name_an_image_in_a_folder_by_its_id(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "studies"
    paths = {put(root / "export" / f"DOE JANE {k}.dcm", k): root / "export" / f"DOE JANE {k}.dcm" for k in (1, 2)}
    for uid, path in paths.items():
        content = path.read_bytes()
        path.write_bytes(
            content[: len(content) // 2] if uid == min(paths) else content.replace(b"CS\x02\x00US", b"CS\x02\x00OT")
        )
    store = make_store(root)
    assert [store.is_readable(uid) for uid in sorted(paths)] == [False, True]
    for uid in paths:
        assert f"{uid}.dcm" in caplog.text  # damaged; of a modality that is warned of
    (root / "export").rename(root / "elsewhere")
    with pytest.raises(ImageNotFoundException, match=min(paths)) as refused:
        store.image_path(min(paths))
    assert "JANE" not in caplog.text + str(refused.value)


def test_a_label_stays_with_its_image_when_the_file_moves(disc: tuple[Path, str], tmp_path: Path) -> None:
    root, uid = disc
    store = make_store(root)
    store.save_label(uid, str(label_at(tmp_path / "l.nii.gz")), "final", {"user": "x"})
    (root / "other").mkdir()
    store.image_path(uid).resolve().rename(root / "other" / "renamed.dcm")
    again = make_store(root)
    assert again.get_labeled_images() == [uid]
    assert Path(again.get_image_uri(uid)).samefile(root / "other" / "renamed.dcm")
    again.remove_image(uid)
    assert again.list_images() == ["top"] and not (root / "other" / "renamed.dcm").exists()
    assert not list(again.work.nested.iterdir())


def test_files_that_arrive_in_new_folders_are_noticed(disc: tuple[Path, str]) -> None:
    root, uid = disc
    store = make_store(root, auto_reload=True)
    try:
        new = put(root / "later" / "deep" / "x", 5)
        deadline = time.monotonic() + 20
        while new not in store.list_images() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert set(store.list_images()) == {"top", uid, new}
    finally:
        store._observer.stop()
