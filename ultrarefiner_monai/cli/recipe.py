"""All steps from data to the shipped model."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated

import typer

from ultrarefiner_monai.cli.options import DataSets, Device, Fold, LeaveOut

app = typer.Typer()


@app.command()
def recipe(
    file: Annotated[Path, typer.Argument(help="A recipe of configs/, such as configs/recipe_compact.yaml.")],
    data: DataSets,
    out: Annotated[Path, typer.Option(help="Folder for the files of all steps; given again, the recipe resumes.")],
    fold: Fold = "0",
    leave_out: LeaveOut = None,
    scale: Annotated[float, typer.Option(min=0.001, help="Factor for the epochs of all steps.")] = 1.0,
    away: Annotated[
        float,
        typer.Option(
            min=0,
            help="Above 0: repeat the recipe without each set in turn, with this share of the epochs, to estimate what a new hospital sees.",
        ),
    ] = 0.0,
    parallel: Annotated[
        int, typer.Option(min=0, help="Steps that run at the same time; 0: one on a CPU, up to four on a GPU.")
    ] = 0,
    workers: Annotated[
        int,
        typer.Option(min=-1, help="Worker processes of each step that prepare images; -1: from the number of cores."),
    ] = -1,
    until: Annotated[
        list[str] | None,
        typer.Option(help="Stop after this step and the steps it needs; may be given several times."),
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the steps and their times, and stop.")] = False,
    timing: Annotated[
        bool, typer.Option(help="Time a few training steps of each kind first; without it the plan has no times.")
    ] = True,
    device: Device = None,
) -> None:
    """Run a recipe: train, join, calibrate and evaluate, from data to one model file. Resumes at any step."""
    import torch
    from rich.console import Console

    from ultrarefiner_monai.config import load_yaml
    from ultrarefiner_monai.core.types import InputError
    from ultrarefiner_monai.datasets.datalist import check_left_out, read_sets
    from ultrarefiner_monai.recipe.card import write_card
    from ultrarefiner_monai.recipe.plan import estimates, plan_table
    from ultrarefiner_monai.recipe.runner import is_done, run
    from ultrarefiner_monai.recipe.steps import RecipeConfig, Work, jobs_of, up_to

    if not file.is_file():
        raise InputError(f"no recipe at {file}")
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    cores, on_gpu = os.cpu_count() or 1, not chosen.startswith("cpu")
    parallel = parallel or (max(1, min(4, cores // 3)) if on_gpu else 1)
    if workers < 0:  # on a CPU the steps themselves need the cores
        workers = max(1, cores // parallel) if on_gpu else 0
    work = Work(
        load_yaml(RecipeConfig, file),
        file.parent,
        tuple(data),
        fold,
        out.resolve(),  # steps keep it: the same folder, named in another way, is the same
        scale,
        tuple(leave_out or ()),
        away,
        device,
        workers,
    )
    check_left_out(read_sets(data), work.leave_out)
    jobs = jobs_of(work)
    jobs = up_to(jobs, until) if until else jobs
    done = {job.id for job in jobs if is_done(job)}
    if timing or plan:
        Console().print(plan_table(estimates(work, jobs, timing), done, parallel))
    if plan:
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: no step is left running alone
    try:
        run(work, jobs, parallel, typer.echo)
    except KeyboardInterrupt:
        typer.echo("\nstopped; the same command goes on", err=True)
        raise typer.Exit(130) from None
    finally:
        signal.signal(signal.SIGTERM, before)
    if until:
        typer.echo(f"{', '.join(until)} done; the same command without --until goes on")
        return
    typer.echo(f"{out / work.recipe.result / 'model.safetensors'}; figures: {write_card(work, jobs)}")
