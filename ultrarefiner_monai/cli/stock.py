"""The ``monailabel`` command of an environment that make sets up: MONAI Label's own, which takes paths with spaces, and serves a copy
of sample-data where ``start_server`` is given this app and no studies.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from ultrarefiner_monai.cli.launch import Place, choose_studies
from ultrarefiner_monai.core import places


def completed(arguments: list[str]) -> list[str]:
    """The arguments of ``monailabel``, with studies where they are missing."""
    if arguments[:1] != ["start_server"] or _value(arguments, "--studies", "-s") is not None:
        return arguments
    app = _value(arguments, "--app", "-a")
    if app is None or Path(app).resolve() != places.app_folder().resolve():
        return arguments
    studies = choose_studies("", Place.here())
    print(f"No --studies: serving a copy of sample-data, {studies}", flush=True)
    return [*arguments, "--studies", studies]


def _value(arguments: list[str], *names: str) -> str | None:
    """What stands behind one of these options, None where none is there; argparse takes short forms, too."""
    for k, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names or (len(name) > 3 and names[0].startswith(name)):
            return value if equals else "".join(arguments[k + 1 : k + 2])
    return None


def main() -> None:
    sys.argv[1:] = completed(sys.argv[1:])
    runpy.run_module("monailabel.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
