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

# The package's folders from the ground up. A folder uses itself and those before it; docs/architecture.md says what is in each.
PACKAGE_FOLDERS = (
    "core config masks interaction models dicom imaging datasets dicomweb pipeline studies exchange training learning "
    "evaluation batch recipe cli"
).split()
LIB = ROOT / "apps" / "ultrarefiner" / "lib"
APP_FOLDERS = ("store", "tasks", "routes")
# They do not know each other: networks and what is fed to them.
STRANGERS = {("interaction", "models"), ("imaging", "models"), ("datasets", "models"), ("dicom", "models")}


def module_name(path: Path, root: Path = ROOT) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


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


def folder_of(name: str) -> str | None:
    """ultrarefiner_monai.models.sam.network -> models; None for other packages and for the package itself."""
    first, *rest = name.split(".")
    return rest[0] if rest and first == "ultrarefiner_monai" else None


def graph(package: Path, root: Path) -> dict[str, set[str]]:
    """Module -> modules of the same package that it imports, early or late, for types too."""
    paths = {module_name(p, root): p for p in package.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for name, path in paths.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for module in absolute(node, path):
                    inner = {f"{module}.{alias.name}" for alias in node.names} & set(paths)
                    found[name] |= inner or ({module} & set(paths))
        found[name].discard(name)
    return found


def circle_in(edges: dict[str, set[str]]) -> list[str]:
    """The files of one import circle, none where there is none."""
    done: set[str] = set()

    def walk(name: str, way: list[str]) -> list[str]:
        if name in way:
            return [*way[way.index(name) :], name]
        if name in done:
            return []
        for other in sorted(edges[name]):
            circle = walk(other, [*way, name])
            if circle:
                return circle
        done.add(name)
        return []

    return next((c for c in (walk(name, []) for name in sorted(edges)) if c), [])


def test_the_parser_sees_imports(tmp_path: Path) -> None:
    names = imports(PACKAGE / "core" / "geometry.py")
    assert "torch" in names
    assert "ultrarefiner_monai.core.types" in imports(PACKAGE / "models" / "weights" / "pretrained.py")
    assert "ultrarefiner_monai.models.sam.network" in imports(PACKAGE / "models" / "weights" / "pretrained.py")
    assert "ultrarefiner_monai.models.sam.network" not in imports(
        PACKAGE / "models" / "weights" / "pretrained.py", only_early=True
    )


@pytest.mark.parametrize("path", CORE, ids=module_name)
def test_core_does_not_know_the_server(path: Path) -> None:
    roots = {name.split(".")[0] for name in imports(path)}
    assert not roots & {"monailabel", "lib", "apps", "fastapi", "starlette", "uvicorn"}


def test_nothing_stands_loose_at_the_top() -> None:
    assert {p.name for p in PACKAGE.glob("*.py")} == {"__init__.py"}
    assert {p.parent.name for p in PACKAGE.glob("*/*.py")} == set(PACKAGE_FOLDERS)


@pytest.mark.parametrize("path", CORE, ids=module_name)
def test_imports_point_downwards(path: Path) -> None:
    folder = folder_of(module_name(path))
    for name in imports(path) if folder else ():
        other = folder_of(name)
        if other is not None:
            assert PACKAGE_FOLDERS.index(other) <= PACKAGE_FOLDERS.index(str(folder)), (
                f"{module_name(path)} imports {name} from above"
            )
            assert not {(str(folder), other), (other, str(folder))} & STRANGERS, f"{folder} does not know {other}"


def test_a_circle_is_found() -> None:
    assert circle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert not circle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()})


@pytest.mark.parametrize("package", [PACKAGE, LIB], ids=lambda p: p.name)
def test_no_files_import_each_other_in_a_circle(package: Path) -> None:
    edges = graph(package, package.parent)
    assert sum(map(len, edges.values())) > len(edges)
    assert not circle_in(edges)


@pytest.mark.parametrize("path", sorted(LIB.rglob("*.py")), ids=lambda p: module_name(p, LIB.parent))
def test_the_folders_of_the_app_are_in_order(path: Path) -> None:
    """Routes use tasks and the store, tasks use the store; what stands before them all is ``lib.startup``."""
    own = module_name(path, LIB.parent).split(".")[1:2]
    for name in imports(path) if own and own[0] in APP_FOLDERS else ():
        first, *rest = name.split(".")
        if first == "lib" and rest[0] in APP_FOLDERS:
            assert APP_FOLDERS.index(rest[0]) <= APP_FOLDERS.index(own[0]), f"{path.name} imports {name} from above"


@pytest.mark.parametrize("path", sorted((PACKAGE / "models").rglob("*.py")), ids=module_name)
def test_models_know_nothing_of_monai(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"monai", "ignite", "pydicom", "nibabel"}


@pytest.mark.parametrize("part", ["types", "geometry"])
def test_the_ground_floor_knows_torch_only(part: str) -> None:
    roots = {name.split(".")[0] for name in imports(PACKAGE / "core" / f"{part}.py")}
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
