"""The ``ultrarefiner`` command: one file a group of sub-commands, each of which calls one function of the package."""


def main() -> None:
    """The command's entry. Importing this folder loads nothing: ``launch`` needs the standard library alone."""
    from ultrarefiner_monai.cli.command import main as run

    run()
