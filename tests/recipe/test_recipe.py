"""A recipe on tiny networks: what its steps come to, what is done is left alone, and one command makes the whole file."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from ultrarefiner_monai.cli.command import app
from ultrarefiner_monai.config import ConfigError, TrainConfig, from_dict, load_yaml
from ultrarefiner_monai.core.types import InputError
from ultrarefiner_monai.models.checkpoints import read_checkpoint
from ultrarefiner_monai.recipe.card import write_card
from ultrarefiner_monai.recipe.plan import estimates, plan_table, step_seconds
from ultrarefiner_monai.recipe.runner import _lock_of, is_done, log_of, record_of, run
from ultrarefiner_monai.recipe.steps import RecipeConfig, Work, jobs_of, up_to

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
COARSE = {
    "arch": "compact", "image_size": 32, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "mlp_dim": 32,
    "decoder_channels": [16, 8, 8],
}  # fmt: skip
RUN = {
    "data": {"select_share": 0.3, "augment": "machines", "balance": 0.5, "tissue": 0.2, "phantoms": 2},
    "optimiser": {"name": "adamw", "lr": 1e-3, "schedule": "constant"}, "epochs": 2, "batch_size": 4, "tracking": "none",
    "keep": "last", "calibrate": False, "validate_every": 2, "overlays": 0,
}  # fmt: skip
REFINER = {
    "system": {"coarse": COARSE, "sam": {"arch": "compact", "encoder": "lite0", "image_size": 64}},
    "refine": {"train": ["neck", "prompt_encoder", "mask_decoder"], "cache": "off", "variants": 50, "max_clicks": 2},
}
STEPS = [
    {"name": "coarse", "command": "train", "config": "one.yaml"},
    {"name": "elsewhere", "command": "proposals", "config": "one.yaml", "options": {"epochs": 1}},
    {
        "name": "refiner", "command": "train", "config": "two.yaml",
        "options": {"init": "{coarse}/model.safetensors", "refine.sam_init": "stem", "refine.proposals": "{elsewhere}"},
    },
    {
        "name": "joined", "command": "join", "calibrate": False, "coarse": ["{coarse}/best.safetensors"],
        "sam": ["{refiner}/best.safetensors"],
    },
    {
        "name": "final", "command": "join", "coarse": ["{joined}/model.safetensors"],
        "sam": ["{joined}/model.safetensors"],
    },
    {"name": "figures", "command": "evaluate", "model": "{final}/model.safetensors"},
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, write_clean_folder) -> Path:
    """Three sets a, b, c, and a recipe r.yaml with its configurations."""
    root = tmp_path_factory.mktemp("recipe")
    for seed, name in enumerate("abc"):
        write_clean_folder(root / name, 12, seed)
    (root / "one.yaml").write_text(yaml.safe_dump({"phase": "phase1_coarse", "system": {"coarse": COARSE}, **RUN}))
    (root / "two.yaml").write_text(yaml.safe_dump({"phase": "phase2_refiner", **RUN, **REFINER}))
    (root / "r.yaml").write_text(yaml.safe_dump({"result": "final", "steps": STEPS}))
    return root


def work_in(folder: Path, out: Path, **more) -> Work:
    recipe = load_yaml(RecipeConfig, folder / "r.yaml")
    return Work(recipe, folder, tuple(folder / n for n in "abc"), "0", out, **more)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("recipe_*.yaml")), ids=lambda p: p.stem)
def test_the_shipped_recipes_are_sound_and_end_with_figures(path: Path) -> None:
    recipe = load_yaml(RecipeConfig, path)
    assert recipe.result == "shipped" and recipe.steps[-1].command == "evaluate"
    for step in recipe.steps:
        if step.config:
            for left_out in ([], ["any"]):
                load_yaml(TrainConfig, CONFIGS / step.config, dict(step.in_row(left_out).options))
    jobs_of(Work(recipe, CONFIGS, (Path("a"), Path("b"), Path("c")), "0", Path("out"), away_scale=1.0))


def test_steps_become_jobs_in_their_order_and_each_set_is_left_out_in_a_row_of_its_own(folder: Path) -> None:
    jobs = jobs_of(work_in(folder, folder / "out", scale=1.5, away_scale=0.5))
    ids = [job.id for job in jobs]
    assert ids[:4] == ["coarse", "elsewhere/a", "elsewhere/b", "elsewhere/c"]
    assert [i for i in ids if i.startswith("without_b/elsewhere")] == ["without_b/elsewhere/a", "without_b/elsewhere/c"]
    refiner = next(job for job in jobs if job.id == "refiner")
    assert refiner.waits_for == ("coarse", "elsewhere/a", "elsewhere/b", "elsewhere/c")
    assert refiner.training is not None and refiner.training.epochs == 3
    command = " ".join(refiner.command)
    assert f'refine.proposals="{folder / "out" / "elsewhere"}"' in command and "--leave-out" not in command
    away = next(job for job in jobs if job.id == "without_c/coarse")
    assert away.training is not None and away.training.epochs == 2  # round(2 * 1.5 * .5), one at least
    assert away.command[away.command.index("--leave-out") + 1] == "c"
    assert [job.id for job in up_to(jobs_of(work_in(folder, folder / "out")), ["refiner"])][-1] == "refiner"
    with pytest.raises(ConfigError, match="there is no step none; there are coarse"):
        up_to(jobs, ["none"])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"steps": [{**STEPS[0], "options": {"init": "{later}/x"}}], "result": "coarse"}, "no step before it"),
        ({"steps": [STEPS[0], STEPS[0]], "result": "coarse"}, "two steps are called coarse"),
        ({"steps": STEPS[:1], "result": "final"}, "no step is called 'final'; there are coarse"),
        ({"steps": [{**STEPS[0], "config": ""}], "result": "coarse"}, "train needs config"),
        ({"steps": [{**STEPS[1], "by": "1"}], "result": "coarse"}, "number of parts from 2 on"),
        ({"steps": [{**STEPS[0], "name": "a/b"}], "result": "coarse"}, "a step's name is made of"),
        (
            {"steps": [{**STEPS[0], "epochs": 3}], "result": "coarse"},
            r"unknown option steps\[0\].epochs; known here: away_options, ",
        ),
        ({"steps": STEPS[:1]}, "result: the option is missing"),
        ({"steps": [{"command": "train"}], "result": "coarse"}, r"steps\[0\].name: the option is missing"),
    ],
)
def test_a_recipe_that_cannot_be_is_refused_by_name(change: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_dict(RecipeConfig, change)


def test_what_is_done_is_left_alone_and_another_recipe_in_its_place_is_refused(folder: Path, tmp_path: Path) -> None:
    first = jobs_of(work_in(folder, tmp_path))[0]
    assert not is_done(first)
    first.out.mkdir(parents=True)
    record_of(first).write_text(json.dumps({"definition": json.loads(json.dumps(first.definition))}))
    assert is_done(first)
    said: list[str] = []
    run(work_in(folder, tmp_path), [first], 1, said.append)
    assert said == []
    longer = jobs_of(work_in(folder, tmp_path, scale=4.0))[0]
    with pytest.raises(InputError, match=r"another recipe, configuration, scale .*\(epochs differ\)"):
        is_done(longer)


def kept(job, **changes) -> None:
    """Write down that a job is done, as another version or call of the program might have."""
    job.out.mkdir(parents=True, exist_ok=True)
    definition = {**json.loads(json.dumps(job.definition)), **changes}
    record_of(job).write_text(json.dumps({"definition": {k: v for k, v in definition.items() if v is not None}}))


def test_a_configuration_that_changed_between_two_calls_is_refused_and_the_order_of_folders_is_not(
    folder: Path, tmp_path: Path
) -> None:
    for name in ("r.yaml", "one.yaml", "two.yaml"):
        (tmp_path / name).write_text((folder / name).read_text())
    recipe = load_yaml(RecipeConfig, tmp_path / "r.yaml")
    work = Work(recipe, tmp_path, tuple(folder / n for n in "abc"), "0", tmp_path / "out")
    job = jobs_of(work)[0]
    kept(job, sets=["c", "a", "b"])
    assert is_done(job)
    settings = yaml.safe_load((tmp_path / "one.yaml").read_text())
    (tmp_path / "one.yaml").write_text(yaml.safe_dump({**settings, "ema": 0.5}))
    with pytest.raises(InputError, match=r"\(settings differ\)"):
        is_done(jobs_of(work)[0])
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(settings))
    (tmp_path / "one.yaml").write_text("base: base.yaml\n")  # the same, said elsewhere
    assert is_done(jobs_of(work)[0])
    (tmp_path / "base.yaml").write_text(yaml.safe_dump({**settings, "ema": 0.5}))
    with pytest.raises(InputError, match=r"\(settings differ\)"):
        is_done(jobs_of(work)[0])
    kept(job, settings=None)  # of before: it did not say
    assert is_done(jobs_of(work)[0])


@pytest.mark.parametrize("text", ["", '{"definition": {"na', "[]"])
def test_a_damaged_record_is_none(folder: Path, tmp_path: Path, text: str) -> None:
    first = jobs_of(work_in(folder, tmp_path))[0]
    first.out.mkdir(parents=True)
    record_of(first).write_text(text)
    assert not is_done(first)


def test_a_join_takes_the_selection_images_of_its_runs(folder: Path, tmp_path: Path) -> None:
    for job in jobs_of(work_in(folder, tmp_path)):
        if job.step.command == "join":
            command = job.command
            assert command[command.index("--select-share") + 1] == "0.3"
            assert command[command.index("--select-seed") + 1] == "0"
    steps = [dict(s) for s in STEPS[:4]]
    steps[2]["options"] = {**steps[2]["options"], "seed": 1}
    work = Work(
        from_dict(RecipeConfig, {"steps": steps, "result": "joined"}),
        folder,
        (folder / "a", folder / "b"),
        "0",
        tmp_path,
    )
    with pytest.raises(ConfigError, match="joined joins runs of other selection images"):
        jobs_of(work)


def test_what_cannot_be_is_said_before_the_first_step_starts(folder: Path, tmp_path: Path) -> None:
    recipe = load_yaml(RecipeConfig, folder / "r.yaml")
    with pytest.raises(ConfigError, match="step elsewhere: proposals by sets need two sets to learn from, there is a"):
        jobs_of(Work(recipe, folder, (folder / "a",), "0", tmp_path))
    with pytest.raises(ConfigError, match="step without_a/elsewhere: .* there is b"):
        jobs_of(Work(recipe, folder, (folder / "a", folder / "b"), "0", tmp_path, away_scale=1.0))
    with pytest.raises(ConfigError, match="step coarse: no configuration at .*nowhere"):
        jobs_of(Work(recipe, tmp_path / "nowhere", (folder / "a",), "0", tmp_path))
    two = [*STEPS[:2], {**STEPS[2], "options": {**STEPS[2]["options"], "refine.proposals": "{elsewhere},{elsewhere}"}}]
    sets = (folder / "a", folder / "b")
    with pytest.raises(ConfigError, match="--out must not hold a comma"):
        jobs_of(Work(from_dict(RecipeConfig, {"steps": two, "result": "refiner"}), folder, sets, "0", Path("x,y")))
    command = ["recipe", str(folder / "r.yaml"), "--out", str(tmp_path / "out"), "--no-timing", "--leave-out", "d"]
    for name in "abc":
        command += ["--data", str(folder / name)]
    answer = CliRunner().invoke(app, command)
    assert isinstance(answer.exception, InputError) and "no such set" in str(answer.exception)
    assert not (tmp_path / "out").exists()


def summary_of(dice: float, sets: str) -> dict:
    spread = {"mean": dice, "median": dice, "ci95": [dice, dice]}
    own = {
        "lesion_images": {"count": 7, "dice": spread, "boundary_f": spread, "missed": 1},
        "normal_images": {"count": 0},
    }
    crops = {"count": 5, "false_alarms": 2, "by_set": {name: {"count": 0, "false_alarms": 0} for name in sets}}
    about = {"data": "+".join(sets), "fold": "0", "version": "v"}
    return {**about, **own, "by_set": dict.fromkeys(sets, own), "tissue_images": crops}


def test_the_card_has_the_sets_that_were_learnt_from_beside_one_that_was_left_out(folder: Path, tmp_path: Path) -> None:
    steps = [{**step, "by": "2"} if step["name"] == "elsewhere" else step for step in STEPS]
    recipe = from_dict(RecipeConfig, {"steps": steps, "result": "final"})
    work = replace(work_in(folder, tmp_path, leave_out=("c",), away_scale=0.5), recipe=recipe)
    jobs = jobs_of(work)
    found = [job for job in jobs if job.step.command == "evaluate"]
    assert [job.id for job in found] == ["figures", "without_a/figures", "without_b/figures"]
    for job, dice in zip(found, (0.9, 0.8, 0.7)):
        job.out.mkdir(parents=True)
        (job.out / "summary.json").write_text(json.dumps(summary_of(dice, "abc")))
    away, main = write_card(work, jobs).read_text().split("## a+b+c, fold 0")
    rows = [line.split(" | ")[:3] for line in away.splitlines() if line.startswith(("| a", "| b", "| c"))]
    assert rows == [["| a", "7", ".800"], ["| b", "7", ".700"]]
    assert "without c: reported on all of it" in main and all(f"| {name} | 7 | .900" in main for name in "abc")
    assert "| a | none | none |" in main  # no room for a crop: not the others' count


def test_two_recipes_do_not_work_at_the_same_step(folder: Path, tmp_path: Path) -> None:
    first, second = jobs_of(work_in(folder, tmp_path))[:2]
    first.out.mkdir(parents=True)
    # As the step of a recipe that was killed: it holds the lock that it was given.
    orphan = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=[(lock := _lock_of(first)).fileno()]
    )
    lock.close()
    try:
        with pytest.raises(InputError, match="coarse: another recipe, .* wait until it ends"):
            run(work_in(folder, tmp_path), [first], 1, lambda _: None)
        _lock_of(replace(second, out=first.out)).close()  # another step's
    finally:
        orphan.kill()
        orphan.wait()
    _lock_of(first).close()


def test_a_job_that_fails_says_why_and_where_its_log_lies(folder: Path, tmp_path: Path) -> None:
    first = jobs_of(work_in(folder, tmp_path))[0]
    broken = replace(first, command=("train", "phase1_coarse", "--config", "nowhere.yaml", "--data", "x"))
    with pytest.raises(InputError, match="coarse failed .*nowhere.yaml.*log.txt"):
        run(work_in(folder, tmp_path), [broken], 1, lambda _: None)
    assert log_of(broken).is_file() and not is_done(first)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_command_goes_from_data_to_the_file_and_its_figures(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    data = [text for name in "abc" for text in ("--data", str(folder / name))]
    command = ["recipe", str(folder / "r.yaml"), *data, "--out", str(out), "--parallel", "2", "--device", "cpu"]
    planned = CliRunner().invoke(app, [*command, "--plan"])
    assert planned.exit_code == 0 and "8 steps, 0 done" in planned.output and not out.exists()
    monkeypatch.chdir(tmp_path)  # the same folder, named in another way
    first = CliRunner().invoke(app, [*(w.replace(str(out), "out") for w in command), "--until", "refiner"])
    assert first.exit_code == 0, first.output
    (out / "refiner" / "done.json").unlink()  # as if it had been stopped
    stamp = (out / "coarse" / "best.safetensors").stat().st_mtime_ns
    names = {p.relative_to(out / "elsewhere").as_posix() for p in (out / "elsewhere").glob("?/*.png")}
    used = {s: json.loads((out / "elsewhere" / f"without_{s}" / "split.json").read_text())["train"] for s in "abc"}
    assert {n.split("/")[0] for n in names} == set("abc")
    assert not any(
        key.startswith(f"{s}/") for s in "abc" for key in used[s]
    )  # none has seen the hospital that it predicts
    whole = CliRunner().invoke(app, command)
    assert whole.exit_code == 0, whole.output
    assert (out / "coarse" / "best.safetensors").stat().st_mtime_ns == stamp
    stored = read_checkpoint(out / "final" / "model.safetensors")
    assert stored.meta["data"] == "a+b+c" and stored.config.safety.enabled
    figures = (out / "figures.md").read_text()
    assert "## a+b+c, fold 0" in figures and "lesion-free crops marked" in figures


@pytest.mark.parametrize("name", ["one.yaml", "two.yaml"])
def test_the_plan_times_steps_of_every_phase(folder: Path, name: str) -> None:
    assert step_seconds(load_yaml(TrainConfig, folder / name), "cpu") > 0


def test_the_plan_counts_images_and_time(folder: Path, tmp_path: Path) -> None:
    work = work_in(folder, tmp_path, device="cpu", away_scale=0.5)
    jobs = jobs_of(work)
    found = estimates(work, jobs)
    by_id = {e.job.id: e for e in found}
    whole, part = by_id["coarse"], by_id["elsewhere/a"]
    assert whole.images > part.images > 0 and by_id["figures"].images == 0
    table = plan_table(found, {"coarse"}, 2)
    assert table.title is not None and "1 done; about" in str(table.title)
    assert [str(c) for c in table.columns[0].cells][-3:] == ["without_a", "without_b", "without_c"]
    untimed = plan_table(estimates(work, jobs, timing=False), {"coarse"}, 2)
    assert "about" not in str(untimed.title)  # nothing is said of what was not measured
    assert {str(c) for c in untimed.columns[-1].cells} == {"done", ""}
    assert [str(c) for c in untimed.columns[2].cells] == [str(c) for c in table.columns[2].cells]
