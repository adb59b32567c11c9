"""What texts point at is there: links and paths in the pages, in docstrings, comments and configurations."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest
from test_imports import PACKAGE_FOLDERS

from ultrarefiner_monai.config import LoraConfig, RefineConfig, ServeConfig, SystemConfig, TrainConfig
from ultrarefiner_monai.config.system import SamConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "sample-data" / "README.md", *(ROOT / "docs").rglob("*.md")]
FOLDERS = ("ultrarefiner_monai", "apps", "benchmarks", "configs", "tests")
CODE = [path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.py"))]
PLAIN = [path for name in FOLDERS for path in sorted((ROOT / name).rglob("*.yaml"))]
PLAIN += [ROOT / "Makefile", ROOT / "setup.cfg", ROOT / "pyproject.toml"]
# Where a path in a text may begin, besides the folder of the text itself.
STARTS = (ROOT, ROOT / "ultrarefiner_monai", ROOT / "apps" / "ultrarefiner", ROOT / "docs", ROOT / "tests")
QUOTED = re.compile(r"`+([\w./-]+/[\w.-]+|[\w-]+\.py)`+")
BARE = re.compile(
    r"(?<![\w/`-])((?:ultrarefiner_monai|apps/ultrarefiner|benchmarks|configs|tests|docs)/[\w./-]+\.[a-z]+)\b"
)
ENDINGS = (".py", ".md", ".yaml", ".yml", ".toml", ".cfg", ".png", ".json")
DOCUMENT = re.compile(r"[\w./-]*[\w-]\.md\b")
# Files that commands write where the user says, so that no text can say where they are.
WRITTEN = {
    "figures.md",
    "done.json",
    "split.json",
    "learning.json",
    "current.json",
    "result.json",
    "results.json",
    "summary.json",
    "statistics.json",
    "list.json",
}


def strings_and_comments(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of each string and comment of a module."""
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            yield token.start[0], token.string


def texts(path: Path) -> Iterator[tuple[int, str]]:
    if path.suffix == ".py":
        yield from strings_and_comments(path)
    else:
        yield from enumerate(path.read_text(encoding="utf-8").splitlines(), 1)


def exists(name: str, near: Path) -> bool:
    if any((start / name).exists() for start in (near.parent, *STARTS)):
        return True
    return "/" not in name and any(p.name == name for p in CODE)


def missing_paths(text: str, near: Path) -> Iterator[str]:
    """Paths in backticks that are not there. A name in capitals stands for something that the reader chooses."""
    for name in QUOTED.findall(text) + BARE.findall(text):
        is_path = name.endswith(ENDINGS) and not re.search(r"[A-Z]{2}|^[A-Z]\.|^/|\*", name)
        if is_path and Path(name).name not in WRITTEN and not exists(name, near):
            yield name


def anchors(page: Path) -> set[str]:
    """As GitHub names the headings of a page."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


def test_the_checks_find_what_is_wrong(tmp_path: Path) -> None:
    page = ROOT / "docs" / "README.md"
    assert list(missing_paths("see `models/lite.py`, ``core/geometry.py`` and `predictor.py`", page)) == [
        "models/lite.py"
    ]
    assert list(missing_paths("`configs/nothing.yaml`, `OUT/figures.md`, `A.yaml`", page)) == ["configs/nothing.yaml"]
    (tmp_path / "x.md").write_text("# One page\n## What's `new`, really\n")
    assert anchors(tmp_path / "x.md") == {"one-page", "whats-new-really"}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        other = page.parent / name if name else page
        assert other.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(other), f"{page.name} links to {target}: no such heading"


@pytest.mark.parametrize("path", [*PAGES, *CODE, *PLAIN], ids=lambda p: str(p.relative_to(ROOT)))
def test_paths_in_texts_are_there(path: Path) -> None:
    if path == Path(__file__):
        return
    wrong = [f"line {line}: {name}" for line, text in texts(path) for name in missing_paths(text, path)]
    assert not wrong


@pytest.mark.parametrize("path", [*CODE, *PLAIN], ids=lambda p: str(p.relative_to(ROOT)))
def test_documents_that_code_names_are_in_the_repository(path: Path) -> None:
    if path == Path(__file__):
        return
    for line, text in texts(path):
        for name in DOCUMENT.findall(text):
            known = Path(name).name in WRITTEN or exists(name, path) or any(p.name == name for p in PAGES)
            assert known, f"line {line}: {name}"


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").as_posix()
        assert name == "README.md" or f"({name})" in contents, name


def test_the_architecture_shows_the_folders_in_the_order_of_their_imports() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.split("## Folders are layers")[1].split("The rest of the repository")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE) == list(PACKAGE_FOLDERS)


def test_options_that_pages_name_exist() -> None:
    system = SystemConfig(sam=SamConfig())
    train = TrainConfig(refine=RefineConfig(lora=LoraConfig(), cache="off"))
    known = {
        **vars(system),
        **vars(train),
        "system": system,
        "pacs": ServeConfig().pacs,
        "learning": ServeConfig().learning,
    }
    for page in PAGES:
        if "history" in page.parts or page.name == "CHANGELOG.md":  # they tell of options that are gone
            continue
        for name in re.findall(r"[` ]([a-z]+(?:\.[a-z_]+)+)(?=[`=: ])", page.read_text(encoding="utf-8")):
            first, *rest = name.split(".")
            found = known.get(first)
            for part in rest if is_dataclass(found) else ():
                assert hasattr(found, part), f"{page.name}: there is no option {name}"
                found = getattr(found, part)
