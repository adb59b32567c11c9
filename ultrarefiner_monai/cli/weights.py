"""Pretrained weights: list, fetch, add; checkpoints: export, join."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ultrarefiner_monai.cli.options import Device, LeaveOut

app = typer.Typer(
    no_args_is_help=True, help="Pretrained weights (SAM, MedSAM, UltraSam, R50+ViT-B_16) and checkpoints."
)


@app.command("list")
def weights_list() -> None:
    """List the known weights: which are here, and under which licence."""
    from urllib.parse import urlsplit

    from rich.console import Console
    from rich.table import Column, Table

    from ultrarefiner_monai.models.weights.pretrained import list_weights, weights_folder

    hosts = sorted({urlsplit(row.url).netloc for row in list_weights() if row.url})
    table = Table(Column("name", no_wrap=True), "here", "MB", "sha256", "licence", "about")
    for row in list_weights():
        size = "?" if row.size is None else f"{row.size / 1e6:.0f}"
        digest = "not published" if row.sha256 is None else row.sha256[:12] + ("" if row.published else " (pinned)")
        table.add_row(row.name, "yes" if row.path else "no", size, digest, row.licence, row.about)
    Console().print(table)
    typer.echo(f"folder: {weights_folder()}; the names' addresses: {', '.join(hosts)}")


@app.command("fetch")
def weights_fetch(name: str) -> None:
    """Download weights by name. Resumes an earlier try, and checks the file before it is used."""
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TransferSpeedColumn

    from ultrarefiner_monai.models.weights.known import KNOWN
    from ultrarefiner_monai.models.weights.pretrained import fetch

    if name not in KNOWN:
        fetch(name)  # says which names there are
    with Progress(
        *Progress.get_default_columns(), DownloadColumn(), TransferSpeedColumn(), console=Console(stderr=True)
    ) as bar:
        row = bar.add_task(name, total=None)
        path = fetch(name, progress=lambda done, total: bar.update(row, completed=done, total=total))
    typer.echo(str(path))


@app.command("add")
def weights_add(
    file: Path, name: Annotated[str | None, typer.Option(help="A known name, or a new one.")] = None
) -> None:
    """Add a weights file that was brought by hand, after checking it."""
    from ultrarefiner_monai.models.weights.pretrained import add

    typer.echo(str(add(file, name)))


@app.command("export")
def weights_export(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint of this package with a refiner.")],
    file: Annotated[Path, typer.Argument(help="The .pth to write.")],
) -> None:
    """Write a checkpoint's SAM as a plain SAM file, which segment_anything's sam_model_registry loads (vit_b, vit_l, vit_h)."""
    from ultrarefiner_monai.core.types import InputError
    from ultrarefiner_monai.models.checkpoints import load_system
    from ultrarefiner_monai.models.sam.network import save_sam

    system = load_system(checkpoint)
    if system.refiner is None or system.config.sam is None:
        raise InputError(f"{checkpoint} holds a coarse network and no SAM: there is nothing to export")
    save_sam(system.refiner.sam, file)
    typer.echo(f"{file}: {system.config.sam.arch}, {system.config.sam.image_size} px, version {system.version}")


@app.command("join")
def weights_join(
    out: Annotated[Path, typer.Argument(help="The checkpoint to write.")],
    coarse: Annotated[list[Path], typer.Option(help="A checkpoint; of several, their coarse networks are averaged.")],
    data: Annotated[
        list[Path], typer.Option(help="The data folder that they were trained on; may be given several times.")
    ],
    fold: Annotated[str, typer.Option(help="The fold that they held out.")],
    sam: Annotated[list[Path] | None, typer.Option(help="A checkpoint; of several, their SAMs are averaged.")] = None,
    select_share: Annotated[float, typer.Option(help="data.select_share of the runs.")] = 0.1,
    select_seed: Annotated[int, typer.Option(help="data.select_seed of the runs.")] = 0,
    leave_out: LeaveOut = None,
    calibrate: Annotated[
        bool,
        typer.Option(help="Choose the post-processing on the selection images; else the first checkpoint's is kept."),
    ] = True,
    device: Device = None,
) -> None:
    """Join several runs with common start weights into one checkpoint, calibrated on their selection images."""
    import torch

    from ultrarefiner_monai.models.checkpoints import read_checkpoint
    from ultrarefiner_monai.training.joining import join

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    found = join(coarse, sam or [], data, fold, out, select_share, select_seed, device, leave_out or (), calibrate)
    post = found.post
    typer.echo(
        f"{out}: version {read_checkpoint(out).version}, threshold {post.threshold}, min_peak {post.min_peak}, "
        f"peak_ratio {post.peak_ratio}, min_presence {post.min_presence}"
    )
