"""Which module may import which, and what must not be imported early. Parsed, not executed."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ultrarefiner_monai"
CORE = sorted(PACKAGE.rglob("*.py"))
# Imported inside the functions that use them: they cost seconds, or are not needed on a serving machine.
HEAVY = {"matplotlib", "highdicom", "mlflow", "submitit", "tensorboard", "itk", "skimage", "pandas", "sklearn", "av"}

# Layers from the ground up; a module may import from its own layer and the ones below. models and data are one floor
# but do not know each other.
LAYERS: list[set[str]] = [
    {"types", "config", "files", "setaside", "threads", "__init__"},
    {"geometry", "losses", "metrics", "postprocess", "uncertainty", "clicks", "cuts", "pixels", "measure"}
    | {"coarse", "request", "download", "cache", "recent", "journal", "journalqueue", "opensaves"}
    | {"robot", "trainingfolder", "workfolder", "presence"},
    {"models", "data", "known_weights", "weights"},
    {"checkpoints", "inference", "regions", "pacs"},
    {"registry"},
    {"training", "recipe", "evaluation", "comparison", "summaries", "sheets", "batch"},
    {"commands", "launch"},
    {"cli"},
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def absolute(node: ast.Import | ast.ImportFrom, path: Path) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif node.level == 0:
        yield node.module or ""
    else:
        parents = path.relative_to(ROOT).with_suffix("").parts
        base = ".".join(parents[: len(parents) - node.level])
        if node.module:
            yield f"{base}.{node.module}"
        else:
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def imports(path: Path, only_early: bool = False) -> set[str]:
    """Names of imported modules. only_early: those that run when the module is imported."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                found.update(absolute(child, path))
            late = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) or is_type_checking(child)
            if not (only_early and late):
                visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)))
    return found


def part_of(name: str) -> str | None:
    """ultrarefiner_monai.models.sam -> models; None for other packages."""
    first, *rest = name.split(".")
    return (rest[0] if rest else "__init__") if first == "ultrarefiner_monai" else None


def layer_of(part: str) -> int | None:
    return next((level for level, parts in enumerate(LAYERS) if part in parts), None)


def test_the_parser_sees_imports(tmp_path: Path) -> None:
    names = imports(PACKAGE / "geometry.py")
    assert "torch" in names
    assert "ultrarefiner_monai.types" in imports(PACKAGE / "weights.py")
    assert "ultrarefiner_monai.models.sam" in imports(PACKAGE / "weights.py")
    assert "ultrarefiner_monai.models.sam" not in imports(PACKAGE / "weights.py", only_early=True)


@pytest.mark.parametrize("path", CORE, ids=module_name)
def test_core_does_not_know_the_server(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"monailabel", "lib", "apps", "fastapi", "starlette", "uvicorn"}


@pytest.mark.parametrize("path", CORE, ids=module_name)
def test_imports_point_downwards(path: Path) -> None:
    part = part_of(module_name(path)) or ""
    level = layer_of(part)
    assert level is not None, f"{part} stands in no layer: name it in LAYERS"
    for name in imports(path):
        other = part_of(name)
        if other is None:
            continue
        other_level = layer_of(other)
        assert other_level is not None, f"{other} stands in no layer: name it in LAYERS"
        assert other_level <= level, f"{module_name(path)} imports {name}, which stands above it"


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").rglob("*.py")), ids=module_name)
def test_models_know_nothing_of_monai_or_data(path: Path) -> None:
    names = imports(path)
    assert not {name.split(".")[0] for name in names} & {"monai", "ignite", "pydicom", "nibabel"}
    assert not {part_of(name) for name in names} & {"data"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "data").rglob("*.py")), ids=module_name)
def test_data_knows_nothing_of_models(path: Path) -> None:
    assert not {part_of(name) for name in imports(path)} & {"models", "training", "checkpoints"}


@pytest.mark.parametrize("part", ["types", "geometry"])
def test_the_ground_floor_knows_torch_only(part: str) -> None:
    roots = {name.split(".")[0] for name in imports(PACKAGE / f"{part}.py")}
    assert roots <= {"__future__", "dataclasses", "torch", "typing", "math", "collections", "ultrarefiner_monai"}


@pytest.mark.parametrize("path", CORE + sorted((ROOT / "apps").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_heavy_imports_wait_until_they_are_used(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path, only_early=True)}
    assert not roots & HEAVY


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, ultrarefiner_monai; "
        "heavy = {'torch', 'numpy', 'monai', 'monailabel', 'scipy', 'pydicom'} & set(sys.modules); "
        "assert ultrarefiner_monai.__version__; raise SystemExit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
