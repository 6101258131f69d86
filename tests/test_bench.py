"""The benchmark suite: suites, and cells that are never lost."""

import importlib
import inspect
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from bench_parts import SUITE, TINY
from rich.console import Console

from eblvm import evaluation
from eblvm.benchmarks import run as runner
from eblvm.benchmarks.cell import config_hash, devices_of, launched, main_of
from eblvm.benchmarks.run import Worker, keep, last_line, read_results, run_suite
from eblvm.benchmarks.suite import Budget, Cell, Suite, load_suite, suite_names
from eblvm.cli import UserError, recipe_root, resolve_recipe
from eblvm.cli import main as command_line
from eblvm.data import synthetic
from eblvm.training import parse

DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"


class TestSuite:
    @pytest.mark.parametrize(
        ("text", "arguments"),
        [
            ("200steps", ["--trainer.max_steps=200"]),
            ("1 step", ["--trainer.max_steps=1"]),
            ("3epochs", ["--trainer.max_epochs=3"]),
            ("90s", ["--trainer.max_time=00:00:01:30"]),
            ("1.5m", ["--trainer.max_time=00:00:01:30"]),
            ("49h", ["--trainer.max_time=02:01:00:00"]),
        ],
    )
    def test_budgets_are_options_of_the_trainer(self, text, arguments):
        assert Budget.parse(text).arguments() == arguments

    @pytest.mark.parametrize("text", ["5", "steps", "1.5steps", "0m", "-3epochs", "5 minutes"])
    def test_budgets_that_are_none(self, text):
        with pytest.raises(UserError, match="budget"):
            Budget.parse(text)

    def test_cells_go_seed_by_seed_and_own_budgets_before_common_ones(self, suite_file):
        suite = load_suite(str(suite_file), seeds=[0, 1])
        assert [c.seed for c in suite.cells] == [0, 0, 0, 1, 1, 1]
        assert [c.budget.epochs for c in suite.cells[:3]] == [1, 1, 2]
        assert suite.cells[1].options == ("--model.init_args.nothing=1",)
        with pytest.raises(UserError, match="no table 'other'; it has tiny"):
            load_suite(str(suite_file), tables=["other"])
        assert len(load_suite("toy", tables=["moons", "rings"]).tables) == 2
        forced = load_suite(str(suite_file), budget=Budget(steps=2))
        assert {c.budget for c in forced.cells} == {Budget(steps=2)}
        assert Suite.from_json(suite.to_json()) == suite

    def test_recipe_files_lie_beside_the_suite(self, suite_file):
        shutil.copy(TINY, suite_file.with_name("own.yaml"))
        suite_file.write_text(SUITE.replace("TINY", "own.yaml"))
        assert load_suite(str(suite_file)).cells[0].recipe == str(suite_file.with_name("own.yaml"))

    @pytest.mark.parametrize(
        ("old", "new", "said"),
        [
            ("loss: lower", "loss: least", "expected lower or higher"),
            ("title:", "titel:", "title"),
            ("metrics: {loss: lower}", "", "metrics is missing"),
            ("label: longer", "label: tiny", "twice"),
            ("recipe: TINY, label: tiny", "recipe: image/lebm_digit", "image/lebm_digits"),
            ("metrics: {loss: 1.5}", "metrics: {speed: 2}", "speed has no column"),
            ("epochs: 1", "epochs: none", "positive whole number"),
            ("tables:", "tables: [", "not YAML"),
            ("tables:", "seeds: 3\ntables:", "a list of numbers"),
            ("tables:", "jobs: many\ntables:", "jobs is 'many'"),
            ("tables:", "jobs: 0\ntables:", "1 or more"),
            ("title: Random images", "note: [a]", "expected a text"),
            ("metrics: {loss: 1.5}", "metrics: {loss: low}", "expected a number"),
            ("budget: {epochs: 1}", "budget: {epochs: 1.5}", "whole number"),
            ("metrics: {loss: lower}", "metrics: [loss]", "metrics are"),
            ("name: tiny", "name: ../tiny", "that of a folder"),
            ("options: [--model.init_args.nothing=1]", "options: --ema=0.9", "a list of texts"),
        ],
    )
    def test_what_is_wrong_is_said(self, suite_file, old, new, said):
        assert old in SUITE
        suite_file.write_text(SUITE.replace(old, new, 1).replace("TINY", str(TINY)))
        with pytest.raises(UserError, match=said):
            load_suite(str(suite_file))

    @pytest.mark.parametrize("name", suite_names())
    def test_installed_suites_are_understood(self, name):
        suite = load_suite(name)
        assert suite.about
        assert suite.cells

    @pytest.mark.parametrize("name", suite_names())
    def test_a_table_has_one_protocol(self, name):
        """Figures of one table are made alike: same number of samples, features, sizes, splits."""
        for table in load_suite(name).tables:
            seen = {}
            for cell in {cell.label: cell for cell in table.cells}.values():
                for judge, settings in judges_of(cell).items():
                    known = seen.setdefault(judge, (cell.recipe, settings))
                    assert settings == known[1], f"{cell.recipe} and {known[0]}"

    def test_toy_has_every_recipe_of_the_plane(self):
        there = {f"toy/{path.stem}" for path in (recipe_root() / "toy").glob("*.yaml")}
        assert {cell.recipe for cell in load_suite("toy").cells} == there

    def test_toy_has_every_method_on_every_density(self):
        kinds = [getattr(synthetic, name) for name in synthetic.__all__]
        kinds = [k for k in kinds if inspect.isclass(k) and issubclass(k, synthetic.Density2D)]
        densities = {k.__name__ for k in kinds if not inspect.isabstract(k)}
        found, methods = set(), {}
        for table in load_suite("toy").tables[:-1]:  # but for the machine's
            for cell in table.cells:
                said = [o for o in cell.options if o.startswith("--data.init_args.density=")]
                said = said or [resolve_recipe(cell.recipe).read_text().split("density:")[1]]
                found.add(re.search(r"eblvm\.data\.(\w+)", said[0])[1])
                methods.setdefault(table.name, set()).add(cell.label.split(",")[0])
        assert found == densities
        assert len(methods) == 10
        assert all(kinds == methods["pinwheel"] for kinds in methods.values())
        assert len(methods["pinwheel"]) == 13

    def test_columns_of_clusters_are_what_the_recipes_log(self):
        (table, *_) = load_suite("text-small").tables
        assert "cluster_homogeneity_topic" in table.metrics
        for cell in table.cells:
            assert "eblvm.text_evaluation.Clusters" in resolve_recipe(cell.recipe).read_text()

    @pytest.mark.parametrize("name", [n for n in suite_names() if n.startswith("paper")])
    def test_published_scale_takes_all_devices(self, name):
        assert {devices_of(cell) for cell in load_suite(name).cells} == {"auto"}

    def test_one_device_is_one_process(self, tmp_path):
        """No process is started for a command, where Lightning needs none."""
        mine = tmp_path / "mine.yaml"
        for says, options, alone in (
            ("", (), True),
            ("", ("--trainer.devices=1",), True),
            ("", ("--trainer.devices=2",), False),
            ("trainer: {devices: 4}", (), False),
            ("trainer: {devices: 4}", ("--trainer.devices=1",), True),
        ):
            mine.write_text(says or "trainer: {}")
            found = main_of(Cell("t", "a", str(mine), 0, options=options))
            assert (found is command_line) == alone

    def test_the_example_of_the_page(self, tmp_path):
        text = DOCS.read_text(encoding="utf-8")
        (example,) = re.findall(r"```yaml\n(# mine_suite\.yaml\n.*?)```", text, re.S)
        result = resolve_recipe("image/vae_ebm_diffusion_digits")
        shutil.copy(result, tmp_path / "mine.yaml")
        (tmp_path / "mine_suite.yaml").write_text(example)
        suite = load_suite(str(tmp_path / "mine_suite.yaml"))
        assert [cell.label for cell in suite.cells[:3]][2] == "mine"
        assert len(suite.cells) == 9
        (shown,) = re.findall(r"```yaml\n(prior:\n.*?)```", text, re.S)
        content = yaml.safe_load(result.read_text())
        latent = content["model"]["init_args"]["negatives"]["init_args"]["latent"]
        assert yaml.safe_load(shown)["prior"] == latent["init_args"]["prior"]

    def test_labels_lead_nowhere(self):
        assert Cell("t", "../../../evil", "", 0).id == "t/.._.._.._evil/seed_0"
        assert Cell("t", "..", "", 0).id == "t/_/seed_0"

    def test_near_names(self):
        with pytest.raises(UserError, match="Did you mean quick"):
            load_suite("quik")


JUDGES = {
    "SampleQuality": ("num", "to_training", "inception_score"),
    "GridDensity": ("resolution", "box", "num", "bins"),
    "SampleDensity": ("num", "bins"),
    "Modes": ("num",),
}


def judges_of(cell):
    """What makes the figures of a cell: data, their density, and settings of callbacks by class.

    Options may be merged into what the recipe has, so cells with options that matter are resolved
    as `eblvm fit` would; the rest is read from the YAML, with the defaults of the classes.
    """
    content = yaml.safe_load(resolve_recipe(cell.recipe).read_text())
    data = content["data"]["init_args"]
    options = dict(option.split("=", 1) for option in cell.options)
    size = options.get("--data.init_args.val_size", data.get("val_size"))
    found = {"data": {"image_size": data.get("image_size"), "val_size": str(size)}}
    callbacks, said = content["trainer"].get("callbacks", []), data.get("density")
    if any("callbacks" in option or "density" in option for option in options):
        resolved = parse(cell.recipe, *cell.options).config.as_dict()
        callbacks, data = resolved["trainer"]["callbacks"], resolved["data"]["init_args"]
        said = data.get("density")
    for callback in callbacks:
        kind = callback["class_path"].rpartition(".")[2]
        if kind in JUDGES:
            settings = callback.get("init_args") or {}
            defaults = inspect.signature(getattr(evaluation, kind)).parameters
            found[kind] = {n: settings.get(n, defaults[n].default) for n in JUDGES[kind]}
            if kind == "SampleQuality":
                found[kind]["features"] = settings["features"]["init_args"].get("weights")
    if said:
        kind = getattr(synthetic, said["class_path"].rpartition(".")[2])
        truth = kind(**(said.get("init_args") or {}))
        sides = torch.tensor(truth.bounds).flatten().tolist()
        found["density"] = kind.__name__, [f"{side:.3f}" for side in sides]
    return found


def test_hashes_of_settings_know_no_seeds(tmp_path):
    text = "seed_everything: {0}\ndata:\n  init_args:\n    batch: {1}\n    seed: {0}\nruns: {2}\n"
    found = []
    for values in ((0, 8, "a"), (1, 8, "b"), (0, 9, "a")):
        (tmp_path / "config.yaml").write_text(text.format(*values))
        found.append(config_hash(tmp_path / "config.yaml"))
    assert found[0] == found[1] != found[2]


class TestResults:
    def test_a_line_that_was_cut_off_costs_nothing_else(self, tmp_path):
        path = tmp_path / "results.jsonl"
        keep(path, {"id": "a", "status": "failed"})
        keep(path, {"id": "b", "status": "done", "n": 1})
        with open(path, "a") as file:
            file.write('{"id": "c", "sta')
        assert [r["id"] for r in read_results(path)] == ["a", "b"]
        keep(path, {"id": "a", "status": "done"})
        keep(path, {"id": "b", "status": "failed"})
        found = {r["id"]: r["status"] for r in read_results(path)}
        assert found == {"a": "done", "b": "done"}, "the new line is whole; done is not undone"

    def test_a_line_that_was_cut_off_within_a_character(self, tmp_path):
        path = tmp_path / "results.jsonl"
        keep(path, {"id": "a", "status": "done"})
        with open(path, "ab") as file:
            file.write('{"id": "KL(data‖model)'.encode()[:-8])
        assert [r["id"] for r in read_results(path)] == ["a"]

    def test_line_separators_in_a_label_end_no_line(self, tmp_path):
        path = tmp_path / "results.jsonl"
        keep(path, {"id": "a\u2028b", "status": "done"})
        old = json.dumps({"id": "c\u2028d", "status": "done"}, ensure_ascii=False)
        with open(path, "a", encoding="utf-8") as file:
            file.write(old + "\n")
        assert [r["id"] for r in read_results(path)] == ["a\u2028b", "c\u2028d"]

    def test_why_a_cell_failed(self):
        assert last_line({"error": "a\nb\n"}) == "b"
        assert last_line({"error": ""}) == last_line({}) == "no reason"


class TestWorker:
    @pytest.fixture
    def started(self, monkeypatch):
        """What processes would have been started, and with what environment."""
        found = []

        class Process:
            exitcode = 1

            def __init__(self, target, args):
                found.append(args[1])

            def start(self):
                pass

        nursery = SimpleNamespace(Process=Process, get_start_method=lambda: "spawn")
        monkeypatch.setattr(runner, "nursery", lambda: nursery)
        monkeypatch.setattr(runner, "commit", lambda: "abc")  # git would be a process, too
        monkeypatch.setattr(runner, "POLL", 0.0)
        return found

    def test_one_run_group_however_often_a_suite_is_resumed(self, suite_file, tmp_path, started):
        suite = load_suite(str(suite_file))
        run_suite(suite, tmp_path / "out", wandb=True)
        os.utime(tmp_path / "out/suite.json", (5, 5))
        suite = load_suite(str(suite_file))
        suite_file.write_text(suite_file.read_text().replace("As small as can be", "Tiny"))
        run_suite(load_suite(str(suite_file)), tmp_path / "out", resume=True, wandb=True)
        assert "Tiny" in (tmp_path / "out/suite.json").read_text(), "words may change"
        groups_ = [env["WANDB_RUN_GROUP"] for env in started]
        assert groups_[3:] == ["mine 5"] * 3
        assert [env["WANDB_NAME"] for env in started[:3]] == [c.id for c in suite.cells]

    def test_cells_are_shared_out_over_gpus(self, suite_file, tmp_path, started, monkeypatch):
        monkeypatch.setattr(runner, "gpus", lambda: ["2", "5"])
        several = "longer, options: [--trainer.devices=2]"
        suite_file.write_text(suite_file.read_text().replace("longer", several, 1))
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        for jobs, wanted in ((2, ["2", "5", visible]), (1, [visible] * 3)):
            started.clear()
            run_suite(load_suite(str(suite_file)), tmp_path / str(jobs), jobs)
            assert [env.get("CUDA_VISIBLE_DEVICES") for env in started] == wanted

    def test_tables_of_one_name(self, suite_file):
        table = suite_file.read_text().split("tables:\n")[1]
        suite_file.write_text(suite_file.read_text() + table)
        with pytest.raises(UserError, match="two tables tiny"):
            load_suite(str(suite_file))

    def test_a_recipe_that_cannot_be_read_stops_no_suite(self, tmp_path):
        (tmp_path / "wrong.yaml").write_text("trainer: [")
        assert not runner.shareable(Cell("t", "a", str(tmp_path / "wrong.yaml"), 0))
        assert not runner.shareable(Cell("t", "a", str(tmp_path / "none.yaml"), 0))
        assert runner.shareable(Cell("t", "a", str(TINY), 0))

    def test_the_table_shows_how_far_cells_are(self, tmp_path, started, monkeypatch):
        monkeypatch.setattr(runner.time, "perf_counter", lambda: 100.0)
        run = tmp_path / "run/tiny/version_0"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("trainer: {max_epochs: 4, max_steps: 100}\n")
        worker = Worker(Cell("t", "a [b]", "tiny", 0), tmp_path, 1, None)
        assert worker.row() == {}
        rows = ["epoch,step,train/loss,val/loss", "0,9,3.25,", "0,24,,2.0", "1,49,0.00012345,"]
        (run / "metrics.csv").write_text("\n".join(rows) + "\n2,5")  # a line being written
        row = worker.row()
        assert (row["train/loss"], row["val/loss"]) == ("0.00012345", "2.0")
        (run / "metrics.csv").write_text("\n".join(rows) + "\n")
        board = runner.Board(5, 2)
        board.console = Console(width=100, record=True, file=io.StringIO(), force_terminal=True)
        with board.shown():
            board.update([worker])
            board.console.print(board.live.renderable)
        said = board.console.export_text()
        assert "a_b_/seed_0" in said and "49" in said and "0.0001234" in said
        assert "0:00" in said and "2 of 5 done, 0 failed" in said

    def test_how_far_cells_are_is_told_once_a_minute_without_a_terminal(
        self, tmp_path, started, monkeypatch, capsys
    ):
        clock = [100.0]
        monkeypatch.setattr(runner.time, "perf_counter", lambda: clock[0])
        run = tmp_path / "run/tiny/version_0"
        run.mkdir(parents=True)
        (run / "config.yaml").write_text("trainer: {max_epochs: -1, max_steps: 100}\n")
        (run / "metrics.csv").write_text("epoch,step,train/loss\n0,19,3.25\n")
        worker, board = Worker(Cell("t", "a", "tiny", 0), tmp_path, 1, None), runner.Board(1, 0)
        for now in (130, 161, 190, 230):
            clock[0] = now
            board.update([worker])
        assert capsys.readouterr().out.splitlines() == [
            "t/a/seed_0: step 19, loss 3.25, 1:01 elapsed, 4:04 left",
            "t/a/seed_0: step 19, loss 3.25, 2:10 elapsed, 8:40 left",
        ]

    def test_runs_are_named_by_their_cells(self, tmp_path, monkeypatch):
        from eblvm import runs

        called = []
        monkeypatch.setattr(runs, "WandbLogger", lambda **settings: called.append(settings["name"]))
        for name in (None, "digits/VAE/seed_1"):
            if name:
                monkeypatch.setenv("WANDB_NAME", name)
            runs.loggers(tmp_path / "image/vae_digits/version_0", "image/vae_digits", wandb=True)
        assert called == ["image/vae_digits", "digits/VAE/seed_1"]

    def test_time_left(self, tmp_path, started, monkeypatch):
        clock = [100.0]
        monkeypatch.setattr(runner.time, "perf_counter", lambda: clock[0])
        config = tmp_path / "run/tiny/version_0/config.yaml"
        config.parent.mkdir(parents=True)
        config.write_text("trainer: {max_epochs: 10, max_steps: -1}\n")
        worker = Worker(Cell("t", "a", "tiny", 0), tmp_path, 1, None)
        clock[0] += 20
        assert worker.remaining({"epoch": "0"}) is None, "the first epoch is not done"
        assert worker.remaining({"epoch": "4"}) == pytest.approx(30), "the recipe's own epochs"
        worker.book()
        (config.parent / "last.ckpt").touch()
        again = Worker(Cell("t", "a", "tiny", 0), tmp_path, 1, None)
        assert again.wall == pytest.approx(20)
        clock[0] += 5
        assert again.remaining({"epoch": "5"}) is None, "no pace is known yet"
        clock[0] += 10
        assert again.remaining({"epoch": "6"}) == pytest.approx(40), "ten seconds an epoch"
        assert again.wall == pytest.approx(35)
        timed = Worker(Cell("t", "a", "tiny", 0, Budget(minutes=1)), tmp_path, 1, None)
        assert timed.remaining({}) == pytest.approx(40), "twenty seconds were spent before"

    def test_a_cell_that_ends_before_it_begins_says_what_may_be_wrong(self, tmp_path, started):
        worker = Worker(Cell("t", "a", "tiny", 0), tmp_path, 1, None)
        assert "below `if __name__ == '__main__':`" in last_line(worker.result())

    def test_records_of_failures_say_where_they_happened(self, tmp_path, started):
        worker = Worker(Cell("t", "a", "tiny", 0), tmp_path, 1, None)
        assert set(worker.result()["environment"]) == {"machine", "commit"}
        (tmp_path / "environment.json").write_text('{"packages": {"torch": "2"}}')
        config = tmp_path / "run/tiny/version_0/config.yaml"
        config.parent.mkdir(parents=True)
        config.write_text("seed_everything: 0\n")
        failed = worker.result()
        assert failed["environment"] == {"packages": {"torch": "2"}}
        assert len(failed["config_sha256"]) == 64


def test_a_cell_on_several_devices(suite_file, tmp_path):
    """Two processes on the CPU stand for two GPUs."""
    text = suite_file.read_text()
    start, end = text.index("      - {recipe"), text.index("    published")
    options = "[--trainer.devices=2, --trainer.strategy=ddp]"
    cell = f"      - {{recipe: {TINY}, label: both, options: {options}}}\n"
    suite_file.write_text(text[:start] + cell + text[end:])
    done = bench(suite_file, folder=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert not done.communicate()[1]
    (found,) = read_results(tmp_path / "runs/bench/mine/results.jsonl")
    assert found["status"] == "done", found["error"]
    assert found["cost"]["steps"] == 3, "half as many as of one process"
    assert found["samples"] == "samples.png"


def test_a_command_ends_with_its_cell():
    """Who asks a cell to end asks the command that it waits for, too."""
    child = "import os, signal, time; time.sleep(.5); os.kill(os.getppid(), signal.SIGTERM)"
    with pytest.raises(SystemExit) as stopped:
        launched([sys.executable, "-c"], [f"{child}; time.sleep(60)"])
    assert stopped.value.code == -signal.SIGTERM
    with pytest.raises(SystemExit) as stopped:
        launched([sys.executable, "-c"], ["raise SystemExit(3)"])
    assert stopped.value.code == 3


def bench(*arguments, folder, **more):
    """`eblvm bench …` as a process."""
    code = "from eblvm.cli import main; main()"
    command = [sys.executable, "-c", code, "bench", *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, text=True, **more)


def test_killed_in_the_middle_and_resumed(suite_file, tmp_path):
    suite_file.write_text(SUITE.replace("TINY", str(TINY)).replace("epochs: 2", "epochs: 40"))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    first = bench(suite_file, folder=tmp_path, start_new_session=True, **quiet)
    out = tmp_path / "runs/bench/mine"
    last = out / "cells/tiny/longer/seed_0"
    deadline = time.monotonic() + 200
    while not list(last.glob("run/**/last.ckpt")):
        assert time.monotonic() < deadline
        assert first.poll() is None, first.stderr.read()
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    before = {r["id"]: r for r in read_results(out / "results.jsonl")}
    assert {i: r["status"] for i, r in before.items()} == {
        "tiny/tiny/seed_0": "done",
        "tiny/broken/seed_0": "failed",
    }
    broken = before["tiny/broken/seed_0"]
    assert "no option 'nothing'" in broken["error"]
    assert broken["environment"]["packages"]["torch"]

    refused = bench(suite_file, folder=tmp_path, **quiet)
    assert "Add --resume" in refused.communicate()[1]
    assert refused.returncode == 2
    again = bench(suite_file, "--resume", folder=tmp_path, **quiet)
    said = again.communicate()[1]
    assert again.returncode == 2
    assert "1 cells failed: tiny/broken/seed_0" in said

    after = {r["id"]: r for r in read_results(out / "results.jsonl")}
    assert after["tiny/tiny/seed_0"] == before["tiny/tiny/seed_0"], "not run again"
    resumed = after["tiny/longer/seed_0"]
    assert resumed["cost"]["steps"] == 40 * 6, "of both parts"
    spent = resumed["cost"]["train_wall_s"] + resumed["cost"]["validation_wall_s"]
    assert resumed["wall_s"] > spent
    assert resumed["environment"]["packages"]["torch"]
    assert (out / "report.html").is_file()

    whole = bench(suite_file, "--out", "whole", "--jobs", 2, folder=tmp_path, **quiet)
    whole.communicate()
    for found in read_results(tmp_path / "whole/results.jsonl"):
        known = after[found["id"]]
        assert found["status"] == known["status"]
        for key in ("metrics", "config_sha256"):
            assert found.get(key) == known.get(key), "the same seed, the same figures"

    cell = out / "cells/tiny/tiny/seed_0"  # once more, by a process that does its own imports
    shutil.rmtree(cell / "run")
    (cell / "result.json").unlink()
    command = [sys.executable, "-m", "eblvm.benchmarks.cell", cell / "spec.json"]
    subprocess.run(command, cwd=tmp_path, check=True, **quiet)
    alone = json.loads((cell / "result.json").read_text())
    assert alone["metrics"] == after["tiny/tiny/seed_0"]["metrics"]


def test_a_cell_that_outlives_its_suite_keeps_the_folder(suite_file, tmp_path, eblvm):
    """Whoever goes on would write to the run that it still writes to."""
    suite_file.write_text(SUITE.replace("TINY", str(TINY)).replace("epochs: 1", "epochs: 4000"))
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    first = bench(suite_file, folder=tmp_path, start_new_session=True, **quiet)
    spec = tmp_path / "runs/bench/mine/cells/tiny/tiny/seed_0/environment.json"
    deadline = time.monotonic() + 200
    while not spec.is_file():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first.kill()
    first.wait()
    try:
        refused = eblvm("bench", suite_file, "--out", tmp_path / "runs/bench/mine", "--resume")
        assert refused.status == 2 and "a cell of one that was killed" in refused.err
    finally:
        os.killpg(first.pid, signal.SIGKILL)


def test_a_suite_that_is_ended_early_leaves_no_cell_behind(suite_file, tmp_path):
    """Its cells are asked for before there is a process to fork them from."""
    suite_file.write_text(SUITE.replace("TINY", str(TINY)).replace("epochs: 1", "epochs: 4000"))
    out = tmp_path / "runs/bench/mine"
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for moment in ("spec.json", "run/**/metrics.csv"):  # during imports, and in the middle
        suite = bench(suite_file, "--resume", folder=tmp_path, **quiet)
        deadline = time.monotonic() + 200
        while not list(out.glob(f"cells/tiny/tiny/seed_0/{moment}")):
            assert time.monotonic() < deadline and suite.poll() is None
            time.sleep(0.05)
        suite.send_signal(signal.SIGTERM)
        suite.communicate()
        deadline = time.monotonic() + 60
        while True:  # what it had asked for may come into being, and ends at once
            try:
                with runner.alone(out):
                    break
            except UserError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        assert not (out / "results.jsonl").exists()
        if moment == "spec.json":
            assert not list(out.glob("cells/tiny/tiny/seed_0/environment.json"))


def test_what_cells_have_imported():
    before = signal.getsignal(signal.SIGTERM)
    try:
        importlib.import_module("eblvm.benchmarks.nursery")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)
    assert {"eblvm.using", "eblvm.models.latent_ebm", "eblvm.metrics.words"} <= set(sys.modules)


def test_weights_and_biases_without_a_network(suite_file, tmp_path, monkeypatch):
    """All runs of a suite in one group."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    text = suite_file.read_text()
    start, end = text.index("      - {recipe: TINY, label: broken".replace("TINY", str(TINY))), 0
    end = text.index("    published")
    suite_file.write_text(text[:start] + text[end:])
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    done = bench(suite_file, "--wandb", "--seeds", 2, "--jobs", 2, folder=tmp_path, **quiet)
    said = done.communicate()[1]
    assert done.returncode == 0, said
    out = tmp_path / "runs/bench/mine"
    logs = [p.read_bytes() for p in out.glob("cells/**/wandb/offline-run-*/run-*.wandb")]
    group = f"mine {int((out / 'suite.json').stat().st_mtime)}".encode()
    assert len(logs) == 2 and all(group in log for log in logs)
    assert any(b"tiny/tiny/seed_1" in log for log in logs)


def test_samples_that_fail_lose_no_figures(tmp_path, capsys):
    from eblvm.benchmarks.cell import pictured

    def broken(arguments):
        raise RuntimeError("out of memory")

    assert pictured(tmp_path, tmp_path / "last.ckpt", tmp_path, broken) is None
    assert capsys.readouterr().err.count("RuntimeError: out of memory") == 2


def test_one_process_at_a_time_in_a_folder(suite_file, tmp_path, eblvm):
    out = tmp_path / "runs/bench/mine"
    out.mkdir(parents=True)
    with runner.alone(out):
        done = eblvm("bench", suite_file)
        assert done.status == 2
        assert "another process is running a suite in" in done.err
        assert not (out / "results.jsonl").exists()
    with runner.alone(out):
        pass  # free again


def test_another_suite_does_not_mix_in(suite_file, tmp_path, eblvm):
    out = tmp_path / "runs/bench/mine"
    out.mkdir(parents=True)
    (out / "suite.json").write_text(load_suite(str(suite_file), seeds=[5]).to_json())
    done = eblvm("bench", suite_file, "--resume")
    assert done.status == 2
    assert "begun with another suite" in done.err


def test_suites_are_listed(eblvm):
    done = eblvm("bench")
    assert done.status == 0
    assert {line.split()[0] for line in done.out.splitlines()[1:]} == set(suite_names())
