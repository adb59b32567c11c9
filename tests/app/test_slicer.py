"""3D Slicer's MONAI Label module against the real server: what it sends and expects, and that nothing is off by a pixel.

Slicer itself is not run: ``slicer_module`` does what its module does, with MONAI Label's own client and ITK.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk
from app_server import Server, picture, start
from PIL import Image
from slicer_module import FORMS, LPS, Slicer, Volume, opened_with, write_label

from ultrarefiner_monai.core.types import Clicks
from ultrarefiner_monai.datasets.phantoms import make_phantom
from ultrarefiner_monai.datasets.samples import dicom_bytes
from ultrarefiner_monai.imaging.readers import read_image_file, read_mask, write_mask
from ultrarefiner_monai.learning.sampling.strategies import STRATEGIES
from ultrarefiner_monai.models.checkpoints import load_system
from ultrarefiner_monai.pipeline.predictor import Predictor
from ultrarefiner_monai.studies.journal import Journal

pytestmark = pytest.mark.server

H, W, T = 60, 84, 3
STEPS = (0.1, 0.2, 1.5)
FLIPS = {"ppp": (1, 1, 1), "npp": (-1, 1, 1), "pnp": (1, -1, 1), "nnn": (-1, -1, -1)}
# Columns towards the feet, rows towards the left: nothing lies as in a photograph. And a probe held at an angle.
STANDING = np.array([[0, -0.2, 0, 40], [0, 0, 1.5, -3], [-0.1, 0, 0, 9], [0, 0, 0, 1.0]])
TILTED = np.eye(4)
TILTED[:3, :3] = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]]) * STEPS
TILTED[:3, 3] = (5, -60, 7.5)
NAMES = ["photo.png", *(f"flat {name}.nii.gz" for name in FLIPS), "standing.nii.gz", "tilted.nii.gz"]
DICOM = ["frame.dcm", "cine.dcm"]
NAMES += ["volume nnn.nii", "volume.nrrd", *DICOM]
CASES = [("in_folder", name) for name in NAMES]
CASES += [pytest.param("in_pacs", name, marks=pytest.mark.orthanc) for name in DICOM]


def turned(flips: tuple[int, int, int]) -> np.ndarray:
    affine = np.diag([*(f * s for f, s in zip(flips, STEPS)), 1.0])
    affine[:3, 3] = (5, -60, 7.5)
    return affine


def write_studies(folder: Path) -> None:
    """Images that are neither square nor symmetric, in every position that a header can give them."""
    frames = np.stack([picture(n, H, W) for n in range(T)])
    flat, grid = frames[0].T[..., None], frames.transpose(2, 1, 0)
    Image.fromarray(frames[0]).save(folder / "photo.png")
    positions = {f"flat {name}": turned(flips) for name, flips in FLIPS.items()}
    for name, affine in (positions | {"standing": STANDING, "tilted": TILTED}).items():
        nibabel.save(nibabel.Nifti1Image(flat, affine), folder / f"{name}.nii.gz")
    nibabel.save(nibabel.Nifti1Image(grid, turned(FLIPS["nnn"])), folder / "volume nnn.nii")
    local = LPS @ turned(FLIPS["npp"])
    space = {"space": "left-posterior-superior", "space directions": local[:3, :3].T, "space origin": local[:3, 3]}
    nrrd.write(str(folder / "volume.nrrd"), grid, space)
    (folder / "frame.dcm").write_bytes(dicom_bytes(frames[:1], 1, 0.08))
    (folder / "cine.dcm").write_bytes(dicom_bytes(frames, 2, 0.08))
    for n in range(1, 7):  # as in public datasets
        phantom = make_phantom(np.random.default_rng(n), H, W, "benign")
        Image.fromarray(phantom.image).save(folder / f"benign ({n}).png")


@dataclass
class Site:
    """A running server. ids: name in NAMES -> image id. files: what clients get of it. labels, work: where they lie."""

    server: Server
    ids: dict[str, str]
    files: dict[str, Path]
    labels: Path
    work: Path
    predictor: Predictor

    @cached_property
    def journal(self) -> Journal:
        return Journal(self.work / "journal.sqlite")

    @property
    def studies(self) -> Path:
        return self.server.studies


@pytest.fixture(scope="module")
def in_folder(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("slicer")
    studies = folder / "studies"
    studies.mkdir()
    write_studies(studies)
    server, predictor = start(studies, checkpoint, folder), Predictor(load_system(checkpoint))
    ids, files = {n: n.removesuffix(".gz").rpartition(".")[0] for n in NAMES}, {n: studies / n for n in NAMES}
    yield Site(server, ids, files, studies / "labels" / "final", studies / ".ultrarefiner", predictor)
    server.stop()


@pytest.fixture(scope="module")
def in_pacs(run_orthanc, in_folder, tmp_path_factory, checkpoint):
    """The DICOM studies in an archive; clients get them as NIfTI files."""
    archive, folder = run_orthanc(), tmp_path_factory.mktemp("slicer-pacs")
    archive.add(*(in_folder.studies / name for name in DICOM))
    server = start(archive.url, checkpoint, folder, work_dir=folder / "work")  # type: ignore[arg-type]
    slicer, ids, files = Slicer(server.url, folder / "fetched"), {}, {}
    for _ in DICOM:
        sample, volume = slicer.next_sample(local=False)
        name = "frame.dcm" if volume.image.GetSize()[2] == 1 else "cine.dcm"
        ids[name], files[name] = sample["id"], volume.path
    assert ids.keys() == set(DICOM)
    work = folder / "work"
    yield Site(server, ids, files, work / "labels" / "final", work, in_folder.predictor)
    server.stop()


@pytest.fixture
def site(request) -> Site:
    """In the studies folder, or where the test's ``place`` says."""
    case = getattr(request.node, "callspec", None)
    return request.getfixturevalue(case.params.get("place", "in_folder") if case else "in_folder")


@pytest.fixture
def slicer(site, tmp_path) -> Slicer:
    return Slicer(site.server.url, tmp_path / "slicer", "radiologist")


def corner(volume: Volume) -> np.ndarray:
    """(K, J, I): an L of four pixels in one frame, unlike itself in any mirror."""
    mask = np.zeros(volume.image.GetSize()[::-1], np.uint8)
    mask[-1, [11, 12, 13, 13], [52, 52, 52, 53]] = 1
    return mask


# --- connect, next sample ---------------------------------------------------------------------------------------------


def test_connect_offers_what_the_module_looks_for(slicer):
    slicer.connect()
    kinds = {name: model["type"] for name, model in slicer.info["models"].items()}
    assert next(iter(kinds)) == "ultrarefiner", "the module runs the first model on each next sample"
    assert list(kinds.values()).count("deepgrow") == 1 and kinds["sam_refiner"] == "deepgrow"
    assert slicer.info["labels"] == {"lesion": 1} and list(slicer.info["strategies"]) == list(STRATEGIES)
    for section, names in (("models", kinds), ("trainers", slicer.info["trainers"])):
        for name in names:
            sent, config = slicer.options(section, name), slicer.info[section][name]["config"]
            assert sent == {k: v[0] if isinstance(v, list) else v for k, v in config.items()}
    assert slicer.progress() == (100, 0)  # no training yet: nothing may divide by its epochs


@pytest.mark.parametrize("local", [True, False])
def test_the_next_sample_opens_alone(site, slicer, local):
    """Slicer stacks numbered pictures of one folder to a volume: neither a path nor a download may lead it there."""
    assert len(opened_with(site.studies / "benign (1).png")) == 6
    opened = set()
    for _ in range(len(NAMES) + 6):
        sample, volume = slicer.next_sample(local=local)
        image_file = read_image_file(site.studies / (sample["id"] + "".join(Path(sample["name"]).suffixes)))
        assert volume.image.GetSize() == (image_file.width, image_file.height, image_file.n_frames), sample["id"]
        assert opened_with(volume.path) == [volume.path.name]
        assert sample["checksum"].startswith("SHA256:") and len(sample["checksum"]) == 7 + 64
        assert volume.path.name == sample["name"]
        opened.add(sample["id"])
    assert opened == {*site.ids.values(), *(f"benign ({n})" for n in range(1, 7))}
    if not local:
        pictures = [p for p in slicer.folder.iterdir() if p.name.startswith("benign")]
        assert len(pictures) == 6 and all(opened_with(p) == [p.name] for p in pictures)


# --- geometry ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("place", "name"), CASES)
def test_image_mask_and_click_agree_in_the_world(site, slicer, place, name):
    volume, image_file, image = Volume(site.files[name]), read_image_file(site.files[name]), site.ids[name]
    shown, frames = volume.values, image_file.frames
    tolerance = 0.02 if name == "cine.dcm" else 1e-6  # JPEG decoders differ
    np.testing.assert_allclose(shown / 255, frames, atol=tolerance)

    mask, reply = slicer.infer("ultrarefiner", image)
    expected = np.stack([site.predictor.propose(frame).mask for frame in frames])
    assert not np.array_equal(expected, expected[:, ::-1]) and not np.array_equal(expected, expected[..., ::-1])
    np.testing.assert_array_equal(mask.values, expected)
    np.testing.assert_allclose(mask.affine, volume.affine, atol=1e-4)
    assert reply["label_names"] == {"lesion": 1}
    path, _ = slicer.client.infer("ultrarefiner", image, {"result_extension": ".nii.gz"})
    again = nibabel.Nifti1Image.load(path)
    np.testing.assert_allclose(again.affine, volume.affine, atol=1e-4)
    np.testing.assert_array_equal(
        np.asarray(again.dataobj).reshape(volume.image.GetSize()).transpose(2, 1, 0), expected
    )

    k = image_file.n_frames - 1
    points = {"foreground": [(70, 9, k), (12, 50, k)], "background": [(41, 20, k)]}
    world = {side: [volume.ras(p) for p in found] for side, found in points.items()}
    sent = {side: [volume.ijk(point) for point in found] for side, found in world.items()}
    assert sent == {side: [list(p) for p in found] for side, found in points.items()}
    mask, reply = slicer.click(image, **sent)
    assert all(mask.at(point) == 1 for point in world["foreground"])
    assert all(mask.at(point) == 0 for point in world["background"])
    clicks = Clicks(*(tuple((float(i), float(j)) for i, j, _ in points[side]) for side in points))
    np.testing.assert_array_equal(mask.values[k], site.predictor.interact(frames[k], clicks).mask)
    np.testing.assert_array_equal(mask.values[:k], expected[:k])
    assert reply["frame"] == k
    np.testing.assert_allclose(mask.affine, volume.affine, atol=1e-4)


@pytest.mark.parametrize(("place", "name"), [c for c in CASES if c != ("in_folder", "tilted.nii.gz")])
def test_a_roi_with_swapped_ends_is_the_box_that_was_drawn(site, slicer, place, name):
    volume, image_file = Volume(site.files[name]), read_image_file(site.files[name])
    k = image_file.n_frames - 1
    roi = volume.roi((20, 8, k - 0.4), (60, 41, k + 0.4))
    mask, reply = slicer.click(site.ids[name], [], [], roi)
    box = Clicks(box_xyxy=(20.0, 8.0, 60.0, 41.0))
    np.testing.assert_array_equal(mask.values[k], site.predictor.interact(image_file.frame(k), box).mask)
    assert reply["frame"] == k


def test_some_roi_comes_with_swapped_ends(site):
    """Else the test above would prove nothing."""
    rois = [Volume(path).roi((20, 8, 0), (60, 41, 0)) for path in site.files.values()]
    assert any(r[0] > r[1] for r in rois) and any(r[2] > r[3] for r in rois)


# --- labels -----------------------------------------------------------------------------------------------------------


PLANES = [form for form in FORMS if form.startswith("plane")]  # two axes cannot say where a volume lies
LABELS = [("in_folder", name, form) for name in NAMES for form in FORMS]
LABELS = [c for c in LABELS if c[2] not in PLANES or not c[1].startswith(("volume", "cine", "standing"))]
LABELS += [pytest.param("in_pacs", n, f, marks=pytest.mark.orthanc) for n in DICOM for f in FORMS if f not in PLANES]


@pytest.mark.parametrize(("place", "name", "form"), LABELS)
def test_a_label_as_slicer_writes_it_is_final_to_the_pixel(site, slicer, tmp_path, place, name, form):
    volume, image_file, image = Volume(site.files[name]), read_image_file(site.files[name]), site.ids[name]
    proposed, reply = slicer.infer("ultrarefiner", image)
    drawn = corner(volume)
    label = write_label(tmp_path / form, volume, drawn)
    assert slicer.submit(image, label) == {"image": image, "label": image}
    (stored,) = site.labels.glob(f"{image}.*")
    assert stored.read_bytes() == label.read_bytes() and form.endswith(stored.name.removeprefix(image))
    np.testing.assert_array_equal(read_mask(stored, image_file), drawn)
    correction = site.journal.corrections(image)[-1]
    np.testing.assert_array_equal(correction.mask, drawn)
    assert correction.author == correction.client == "radiologist"
    assert correction.info["label_info"] == [{"name": "lesion", "idx": 1}]
    proposal = site.journal.proposal(correction.proposal_id)
    np.testing.assert_array_equal(proposal.mask, proposed.values)
    assert (proposal.client, proposal.version) == ("radiologist", reply["version"])


@pytest.mark.parametrize("form", ["label.nii.gz", "label.nrrd", "nothing.seg.nrrd"])
def test_an_empty_label_says_that_there_is_no_lesion(site, slicer, tmp_path, form):
    volume = Volume(site.studies / "frame.dcm")
    if form == "nothing.seg.nrrd":  # a segmentation node without a voxel is written as a single one, anywhere
        nrrd.write(str(tmp_path / form), np.zeros((1, 1, 1), np.uint8))
    else:
        write_label(tmp_path / form, volume, np.zeros_like(corner(volume)))
    assert "warnings" not in slicer.submit("frame", tmp_path / form)
    stored = site.journal.corrections("frame")[-1].mask
    assert stored.shape == (1, H, W) and not stored.any()


def test_two_who_save_at_once_are_both_kept_and_the_newest_is_final(site, tmp_path):
    volume, image_file = Volume(site.studies / "photo.png"), read_image_file(site.studies / "photo.png")
    users = [Slicer(site.server.url, tmp_path / name, name) for name in ("first", "second")]
    labels = []
    for n in range(12):
        mask = np.zeros((1, H, W), np.uint8)
        mask[0, n, 10 : 20 + n] = 1
        (tmp_path / str(n)).mkdir()
        form = ("label.nii.gz", "label.nrrd", "cropped.seg.nrrd")[n % 3]
        labels.append((users[n % 2], write_label(tmp_path / str(n) / form, volume, mask), mask))
    versions = site.studies / ".ultrarefiner" / "versions" / "final" / "photo"
    users[0].submit("photo", labels[0][1])
    kept, known = len(list(versions.glob("*"))), len(site.journal.corrections("photo"))
    with ThreadPoolExecutor(6) as pool:
        list(pool.map(lambda item: item[0].submit("photo", item[1]), labels[1:]))
    (final,) = (site.studies / "labels" / "final").glob("photo.*")
    assert len(list(versions.iterdir())) == kept + 11 <= 20
    corrections = site.journal.corrections("photo")[known:]
    assert sorted(c.mask.tobytes() for c in corrections) == sorted(m.tobytes() for _, _, m in labels[1:])
    assert {c.client for c in corrections} == {"first", "second"}
    np.testing.assert_array_equal(read_mask(final, image_file), corrections[-1].mask)
    info = users[0].client.datastore()["objects"]["photo"]["labels"]["final"]["info"]
    assert info["client_id"] == corrections[-1].client and info["name"] == final.name


def test_a_volume_of_ones_own(site, slicer, tmp_path):
    """Opened in Slicer, not from the server: a session, a correction, then image and label join the studies."""
    volume = Volume(site.studies / "flat npp.nii.gz")
    sitk.WriteImage(volume.image, str(tmp_path / "tmp1.nii.gz"), True)
    session = slicer.client.create_session(str(tmp_path / "tmp1.nii.gz"))["session_id"]
    assert slicer.client.get_session(session)
    mask, _ = slicer.click("3: Breast / left", [[30, 20, 0]], [], session=session)
    direct, _ = slicer.click("flat npp", [[30, 20, 0]], [])
    np.testing.assert_array_equal(mask.values, direct.values)
    np.testing.assert_allclose(mask.affine, volume.affine, atol=1e-4)
    assert slicer.client.upload_image(str(tmp_path / "tmp1.nii.gz"), "3 Breast left")["image"] == "3 Breast left"
    slicer.submit("3 Breast left", write_label(tmp_path / "label.nii.gz", volume, corner(volume)))
    (correction,) = site.journal.corrections("3 Breast left")
    proposal = site.journal.proposal(correction.proposal_id)
    assert proposal is not None, "what was proposed in the session is what was corrected"
    np.testing.assert_array_equal(proposal.mask, mask.values)


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_train_progress_and_stop(site, slicer, tmp_path):
    for n in range(1, 7):
        mask = make_phantom(np.random.default_rng(n), H, W, "benign").mask.astype(np.uint8)
        path = tmp_path / f"{n}.nrrd"
        write_mask(path, mask[None], read_image_file(site.studies / f"benign ({n}).png"))
        slicer.submit(f"benign ({n})", path)
    options = slicer.options("trainers", "transunet") | {"max_epochs": 90, "early_stop_patience": 0, "device": "cpu"}
    assert not slicer.client.train_status(check_if_running=True)
    started = slicer.client.train_start("transunet", dict(options))
    assert started["id"] and started["status"] and started["start_ts"]  # the module reads these
    time.sleep(1)  # as the module does
    assert slicer.client.train_status(check_if_running=True)
    percent, end = slicer.progress()[0], time.monotonic() + 300
    assert percent == 1, "nothing is done yet"
    while percent <= 1 and time.monotonic() < end:
        time.sleep(0.5)
        percent, accuracy = slicer.progress()
    assert 0 < percent < 100 and 0 <= accuracy <= 100
    stopped = slicer.client.train_stop()
    assert stopped["status"] and (stopped.get("result") or stopped["details"][-1])  # and these
    while slicer.client.train_status(check_if_running=True):
        time.sleep(0.2)
    assert slicer.client.train_status()["status"] != "RUNNING"
    assert slicer.client.train_start("transunet", dict(options))["status"], "a stopped training can be started again"
    slicer.client.train_stop()
