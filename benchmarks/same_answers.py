"""What the real server of a checkout answers, and whether two checkouts answer the same: for changes that may change nothing.

``python benchmarks/same_answers.py record OUT.json --checkout DIR --studies FOLDER --limit 40`` starts that checkout's
server on a temporary copy of each studies folder (``--studies`` several times; ``sample-data``, the default, is the
checkout's own) and keeps its replies: for each image the automatic result, the coarse mask, and what comes after a fixed
list of clicks and boxes; beside them the lists, the API's description, and requests that are refused.

``python benchmarks/same_answers.py compare A.json B.json`` prints each difference; exit code 1 when there is one.

Times, paths, ports and random ids are left out of a record; all else in a reply counts, texts too. Compare records of one
machine and one number of threads: other processors round differently. Nothing of the package is imported here, so that
the script works on checkouts of any layout.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from answer_records import compare
from checkout_server import REQUEST_SECONDS, Server, chosen_files, serving

SAMPLES = "sample-data"

# Places of the clicks and the box, as shares of width and height: the same for each image, whatever is outlined there.
FOREGROUND = ((0.5, 0.4), (0.56, 0.52))
BACKGROUND = ((0.2, 0.25), (0.8, 0.7))
BOX = (0.3, 0.72, 0.25, 0.6)  # imin, imax, jmin, jmax


# --- the questions ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """One POST /infer/MODEL. ``params``: the JSON that goes with it; ``output``: the query's."""

    name: str
    model: str
    params: dict[str, Any]
    output: str = "all"


def questions(width: int, height: int, frames: int) -> list[Question]:
    """What is asked of an image of this grid after its automatic result: formats, clicks, boxes, frames."""
    k = frames // 2

    def point(place: tuple[float, float], frame: int = k) -> list[int]:
        return [round(place[0] * (width - 1)), round(place[1] * (height - 1)), frame]

    fore, back = [point(p) for p in FOREGROUND], [point(p) for p in BACKGROUND]
    i, j = width - 1, height - 1
    roi = [round(BOX[0] * i), round(BOX[1] * i), round(BOX[2] * j), round(BOX[3] * j), k, k]
    asked = [
        Question("as NIfTI", "ultrarefiner", {"result_extension": ".nii.gz"}, "image"),
        Question("as PNG", "ultrarefiner", {"result_extension": ".png"}, "image"),
        Question("as JSON", "ultrarefiner", {}, "json"),
        Question("as SEG", "ultrarefiner", {"label_info": [{"name": "lesion", "idx": 1}]}, "dicom_seg"),
        Question("coarse", "transunet", {}),
        Question("no prompt", "sam_refiner", {"foreground": [], "background": [], "roi": []}),
        Question("click 1", "sam_refiner", {"foreground": fore[:1]}),
        Question("click 2", "sam_refiner", {"foreground": fore[:1], "background": back[:1]}),
        Question("click 3", "sam_refiner", {"foreground": fore, "background": back[:1]}),
        Question("click 4", "sam_refiner", {"foreground": fore, "background": back}),
        Question("click 4, this frame", "sam_refiner", {"foreground": fore, "background": back, "frame": k}),
        Question("click 4 of ultrarefiner", "ultrarefiner", {"foreground": fore, "background": back}),
        Question("background only", "sam_refiner", {"background": [fore[0]]}),
        Question("box", "sam_refiner", {"roi": roi}),
        Question("box and clicks", "sam_refiner", {"roi": roi, "foreground": fore[1:], "background": back[:1]}),
        Question("at the border", "sam_refiner", {"foreground": [[width, -0.6, k], [0, height - 1, k]]}),
        Question("between pixels", "sam_refiner", {"foreground": [[fore[0][0] + 0.5, fore[0][1] + 0.4, k]]}),
        Question("without a frame", "sam_refiner", {"foreground": [fore[0][:2]]}),
        Question("far outside", "sam_refiner", {"foreground": [[9 * width, 9 * height, k]]}),
        Question("no such frame", "sam_refiner", {"foreground": [[1, 1, frames + 7]]}),
    ]
    if frames > 1:
        two = [point(FOREGROUND[0], 0), fore[1]]
        asked.append(Question("clicks in two frames", "sam_refiner", {"foreground": two, "background": back}))
        asked.append(Question("the last frame", "ultrarefiner", {"frame": frames - 1}))
    return asked


def infer(server: Server, image: str, question: Question) -> dict[str, Any]:
    query = {"image": image, "output": question.output}
    form = {"result_extension": ".nrrd", "result_dtype": "uint8", **question.params}
    return server.ask("POST", f"/infer/{question.model}", form, masks=True, params=query)


def of_image(server: Server, image: str) -> dict[str, dict[str, Any]]:
    """All replies about one image, by the question's name. One that cannot be read is asked as if it were 64 x 64."""
    automatic = infer(server, image, Question("automatic", "ultrarefiner", {}))
    shape = [*automatic.get("mask", {}).get("shape", [64, 64]), 1]
    replies = {"automatic": automatic}
    for question in questions(*shape[:3]):
        replies[question.name] = infer(server, image, question)
    return replies


def of_lists(server: Server) -> dict[str, dict[str, Any]]:
    """Replies that belong to no image."""
    pages = ["/", "/info/", "/openapi.json", "/train/", "/batch/infer", "/auth/", "/auth/token/valid"]
    pages += ["/docs", "/nowhere"]
    pages += [f"/datastore/?output={kind}" for kind in ("all", "stats", "train", "nothing")]
    return {f"GET {page}": server.ask("GET", page) for page in pages}


def of_refusals(server: Server, image: str) -> dict[str, dict[str, Any]]:
    """Requests that have to be refused, with what the server says."""
    forms: list[object] = ["{", "[]", "null", {"foreground": "here"}, {"foreground": [[1]]}, {"roi": [1, 2, 3]}]
    forms += [{"foreground": [[None, 2, 0]]}, {"frame": "third"}, {"frame": 7000}, {"result_extension": ".exe"}]
    forms += [{"image": "other"}, {"no_such_option": 1}, {"roi": [1, 1, 1, 1, 0, 0], "background": [["1", 2, 0]]}]
    path = "/infer/sam_refiner"
    replies = {f"params {json.dumps(f)}": server.ask("POST", path, f, params={"image": image}) for f in forms}
    for name in ("no such image", "", "../x", "/etc/passwd"):
        replies[f"image {name!r}"] = server.ask("POST", "/infer/ultrarefiner", {}, params={"image": name})
        replies[f"GET image {name!r}"] = server.ask("GET", "/datastore/image", params={"image": name})
        replies[f"GET label {name!r}"] = server.ask("GET", "/datastore/label", params={"label": name, "tag": "final"})
    replies["no such model"] = server.ask("POST", "/infer/nope", {}, params={"image": image})
    replies["no such output"] = server.ask("POST", path, {}, params={"image": image, "output": "nope"})
    replies["no such session"] = server.ask("POST", path, {}, params={"session_id": "0000-1111"})
    for task in ("activelearning", "batch/infer", "train", "scoring"):
        replies[f"no such {task}"] = server.ask("POST", f"/{task}/nope", json={})
    label = {"label": ("label.nii.gz", b"no label")}
    replies["no label"] = server.ask("PUT", "/datastore/label", {}, params={"image": image}, files=label)
    return replies


def of_files(server: Server, image: str, labels: list[str]) -> dict[str, dict[str, Any]]:
    """The image and its labels as clients fetch them. An image that is handed out is prepared: ask the rest before."""
    replies = {"GET image info": server.ask("GET", "/datastore/image/info", params={"image": image})}
    replies["GET image"] = server.ask("GET", "/datastore/image", params={"image": image})
    for tag in labels:
        query = {"label": image, "tag": tag}
        replies[f"GET label {tag}"] = server.ask("GET", "/datastore/label", params=query)
        replies[f"GET label info {tag}"] = server.ask("GET", "/datastore/label/info", params=query)
    return replies


def of_server(server: Server, name: str) -> dict[str, dict[str, Any]]:
    """All replies of a server, by ``NAME: image, question``."""
    listed = server.session.get(f"{server.url}/datastore/?output=all", timeout=REQUEST_SECONDS).json()["objects"]
    if not listed:
        raise SystemExit(f"{name}: the server offers no image of this folder")
    replies = {f"{name}: {question}": reply for question, reply in of_lists(server).items()}
    for number, image in enumerate(sorted(listed), 1):
        print(f"{name} {number}/{len(listed)}: {image}", file=sys.stderr, flush=True)
        replies |= {f"{name}: {image}, {question}": reply for question, reply in of_image(server, image).items()}
    first = min(listed)
    replies |= {f"{name}: refused, {question}": reply for question, reply in of_refusals(server, first).items()}
    for image, about in sorted(listed.items()):
        files = of_files(server, image, sorted(about["labels"]))
        replies |= {f"{name}: {image}, {question}": reply for question, reply in files.items()}
    replies[f"{name}: next sample"] = server.ask("POST", "/activelearning/first", json={})
    return replies


# --- the commands -----------------------------------------------------------------------------------------------------


def record(out: Path, checkout: Path, studies: list[str], limit: int | None, conf: list[list[str]]) -> None:
    """Asks the checkout's server about each studies folder and writes ``out``."""
    folders = [checkout / SAMPLES if name == SAMPLES else Path(name).resolve() for name in studies]
    names = ["/".join(p.parts[-2:]) if p != checkout / SAMPLES else SAMPLES for p in folders]
    if len(set(names)) < len(names):
        raise SystemExit(f"two studies folders are called the same: {', '.join(names)}")
    replies: dict[str, dict[str, Any]] = {}
    for name, source in zip(names, folders):
        files = chosen_files(source, limit)
        if not files:
            raise SystemExit(f"{source}: a folder with images was expected, it holds none")
        with tempfile.TemporaryDirectory(prefix="same-answers-") as temporary:
            copy = Path(temporary).resolve() / "studies"
            for file in files:
                (copy / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / file, copy / file)
            with serving(checkout, copy, copy.parent, conf) as server:
                replies |= of_server(server, name)
    about = {"checkout": str(checkout), "studies": names, "limit": limit, "conf": conf, "machine": platform.machine()}
    beside = out.with_name(out.name + ".part")
    text = json.dumps({"about": about, "replies": replies}, indent=1, sort_keys=True)
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(out)
    print(f"{out}: {len(replies)} replies of {', '.join(names)}")


def report(a: Path, b: Path) -> int:
    """Prints what differs between two records; 1 when something does."""
    records = [json.loads(p.read_text(encoding="utf-8")) for p in (a, b)]
    found = compare(*records)
    for name, lines in found.items():
        print(name, *(f"    {line}" for line in lines), sep="\n")
    asked = {name for record in records for name in record["replies"]}
    masks = {name for record in records for name, reply in record["replies"].items() if "mask" in reply}
    changed = {name for name in masks & set(found) if any("mask" in line for line in found[name])}
    same = len(asked) - len(found)
    print(f"{same} of {len(asked)} replies are the same, {len(masks - changed)} of {len(masks)} masks")
    return int(bool(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="ask a checkout's server and keep its replies")
    recording.add_argument("out", type=Path)
    recording.add_argument("--checkout", type=Path, default=Path(__file__).parents[1], help="default: this one")
    recording.add_argument("--studies", action="append", help=f"a folder of images, or {SAMPLES}; several times")
    recording.add_argument("--limit", type=int, help="so many images of each folder, evenly spaced by name")
    recording.add_argument("--conf", nargs=2, action="append", default=[], help="an option of the server: NAME VALUE")
    comparing = commands.add_parser("compare", help="what differs between two records")
    comparing.add_argument("a", type=Path)
    comparing.add_argument("b", type=Path)
    args = parser.parse_args()
    if args.command == "compare":
        return report(args.a, args.b)
    record(args.out, args.checkout.resolve(), args.studies or [SAMPLES], args.limit, args.conf)
    return 0


if __name__ == "__main__":
    sys.exit(main())
