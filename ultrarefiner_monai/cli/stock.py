"""The ``monailabel`` command of an environment that make sets up: MONAI Label's own, which takes paths with spaces, and serves a copy
of sample-data where ``start_server`` is given this app and no studies.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path

from ultrarefiner_monai.cli.launch import Place, choose_studies
from ultrarefiner_monai.cli.server_log import LaunchError
from ultrarefiner_monai.core import places


def completed(arguments: list[str]) -> list[str]:
    """The arguments of ``monailabel``, with studies where they are missing."""
    if arguments[:1] != ["start_server"]:
        return arguments
    parser = argparse.ArgumentParser(add_help=False)  # reads them as MONAI Label's does: short forms, -sDIR
    parser.add_argument("-a", "--app")
    parser.add_argument("-s", "--studies")
    given, _ = parser.parse_known_args(arguments[1:])
    if given.studies is not None or given.app is None or Path(given.app).resolve() != places.app_folder().resolve():
        return arguments
    studies = choose_studies("", Place.here())
    print(f"No --studies: serving a copy of sample-data, {studies}", flush=True)
    return [*arguments, "--studies", studies]


def main() -> None:
    try:
        sys.argv[1:] = completed(sys.argv[1:])
    except LaunchError as error:
        print(f"Cannot start: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    runpy.run_module("monailabel.main", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
