"""The benchmark suite: suites, statistics, cells that are never lost, reports."""

import inspect
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from scipy import stats

from eblvm import density, evaluation, outliers, refining, text_evaluation
from eblvm.benchmarks import run as runner
from eblvm.benchmarks.cell import config_hash, devices_of, launched, main_of
from eblvm.benchmarks.protocols import FIGURES, difference, groups, protocols_of
from eblvm.benchmarks.report import Section, gather, write_report
from eblvm.benchmarks.run import Worker, keep, last_line, read_results, run_suite
from eblvm.benchmarks.statistics import Summary, compare, holm, p_value, summarize
from eblvm.benchmarks.suite import Budget, Cell, Suite, load_suite, suite_names
from eblvm.cli import UserError, recipe_root, resolve_recipe
from eblvm.cli import main as command_line
from eblvm.data import synthetic
from eblvm.training import parse

TINY = Path(__file__).with_name("tiny.yaml")
DOCS = Path(__file__).parent.parent / "docs" / "benchmarks.md"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

SUITE = """
about: As small as can be.
tables:
  - name: tiny
    title: Random images
    metrics: {loss: lower}
    budget: {epochs: 1}
    cells:
      - {recipe: TINY, label: tiny}
      - {recipe: TINY, label: broken, options: [--model.init_args.nothing=1]}
      - {recipe: TINY, label: longer, budget: {epochs: 2}}
    published:
      - {label: theirs, source: "Someone, 2020", metrics: {loss: 1.5}}
"""


@pytest.fixture
def suite_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE.replace("TINY", str(TINY)))
    return path


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
            ("epochs: 1", "epochs: none", "positive number"),
            ("tables:", "tables: [", "not YAML"),
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

    def test_a_table_has_one_protocol(self):
        """Figures of one table are made alike: same number of samples, features, sizes, splits."""
        for name in suite_names():
            for table in load_suite(name).tables:
                seen = {}
                for cell in {cell.label: cell for cell in table.cells}.values():
                    for judge, settings in judges_of(cell).items():
                        known = seen.setdefault(judge, (cell.recipe, settings))
                        assert settings == known[1], f"{name}: {cell.recipe} and {known[0]}"

    def test_toy_has_every_recipe_of_the_plane(self):
        there = {f"toy/{path.stem}" for path in (recipe_root() / "toy").glob("*.yaml")}
        left = {"toy/ddaebm_sharpened_25gaussians"}  # starts from the weights of another run
        assert {cell.recipe for cell in load_suite("toy").cells} == there - left

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


class TestStatistics:
    def test_seeds_that_pair_are_compared_by_their_differences(self):
        one, other = {0: 1.0, 1: 2.0, 2: 4.0}, {0: 1.5, 1: 2.4, 2: 4.9}
        p, test = p_value(one, other)
        assert test == "paired t"
        assert p == pytest.approx(stats.ttest_rel([*one.values()], [*other.values()]).pvalue)
        p, test = p_value(one, {3: 1.5, 4: 2.4, 5: 4.9})
        assert test == "Welch"
        assert p > 0.5, "without pairs the spread over seeds hides the difference"

    def test_no_test_of_one_seed(self):
        assert math.isnan(p_value({0: 1.0}, {0: 2.0})[0])
        assert p_value({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0})[0] == 1

    @pytest.mark.parametrize("pairs", [True, False])
    @pytest.mark.parametrize("one", [{0: 25.0, 1: 25.0}, {0: 0.3, 1: 0.1 + 0.2}])
    def test_no_test_without_spread(self, one, pairs):
        other = {seed: value - 1 for seed, value in one.items()}
        p, test = p_value(one, other, pairs)
        assert math.isnan(p), "counts of modes that are equal for all seeds prove nothing"
        assert test == "none"
        assert p_value({0: 24.0, 1: 24.0}, {0: 24.0, 1: 24.0}, pairs)[0] == 1

    def test_samples_of_others_do_not_pair(self):
        rows = [{0: 1.0, 1: 2.0, 2: 4.0}, {0: 1.5, 1: 2.4, 2: 4.9}]
        _, found = compare({"a": summarize(rows[0]), "b": summarize(rows[1], pairs=False)}, "lower")
        assert found["b"].test == "Welch"
        expected = stats.ttest_ind(*(list(r.values()) for r in rows), equal_var=False).pvalue
        assert found["b"].p == pytest.approx(expected)

    def test_a_row_that_lacks_seeds_is_not_the_best(self):
        rows = {
            "diverged": summarize({0: 1.0, 1: math.inf, 2: math.nan}),
            "whole": summarize({0: 2.0, 1: 2.1, 2: 2.3}),
        }
        assert str(rows["diverged"]) == "1 (1 of 3)"
        best, others = compare(rows, "lower")
        assert best == "whole"
        assert others["diverged"].kind == "untested"

    def test_holm(self):
        assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx(
            [0.03, 0.06, 0.06, math.nan], nan_ok=True
        )
        assert holm([0.9, 0.8]) == [1.0, 1.0]

    @pytest.mark.parametrize(("better", "best"), [("lower", "a"), ("higher", "c")])
    def test_the_best_row_against_all_others(self, better, best):
        rows = {
            "a": summarize({0: 1.0, 1: 1.1}),
            "b": summarize({0: 2.0, 1: 2.1}),
            "c": summarize({0: 3.0, 1: 3.3}),
            "nothing": summarize({0: math.nan}),
        }
        found, others = compare(rows, better)
        assert found == best
        assert set(others) == {"a", "b", "c"} - {best}
        assert compare({"a": rows["a"], "nothing": rows["nothing"]}, better) == (None, {})

    def test_summaries(self):
        assert str(Summary({0: 1.0, 1: 3.0})) == "2 ± 1.4"
        assert str(Summary({0: 0.12345})) == "0.123"
        assert str(summarize({})) == "–"
        assert str(summarize({0: math.inf})) == "– (0 of 1)"
        assert str(summarize({0: 1.0}, wanted=3)) == "1 (1 of 3)"


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


class TestProtocols:
    def test_figures_of_others_do_not_count(self):
        grid = {"kl": {"bounds": "4"}, "num_samples": 20_000, "seed": 1, "split": "test"}
        record_ = {"protocol": {"GridDensity": grid, "Modes": {"num_samples": 5}}}
        assert protocols_of(record_, "sample_kl") == {"num_samples": 20_000, "split": "test"}
        assert protocols_of(record_, "kl")["kl"] == {"bounds": "4"}
        assert protocols_of({}, "kl") == {}

    def test_every_callback_that_logs_says_how(self):
        """Which figures are whose is known of all callbacks, and each sets its protocol."""
        seen = set()
        for module in (density, evaluation, outliers, refining, text_evaluation):
            for name, kind in vars(module).items():
                look = vars(kind).get("look") if isinstance(kind, type) else None
                source = inspect.getsource(look) if look else ""
                if re.search(r"\blog\(\s*learner, stage", source):
                    assert "self.protocol" in source, name
                    seen.add(name)
        assert seen | {"ProposalQuality"} == set(FIGURES)

    def test_what_old_records_lack_is_no_difference(self):
        assert difference({"num": 1, "split": "test"}, {"num": 1}) is None
        assert difference({"num": 1}, {"num": 2}) == "num"
        known = {"a": {"num": 2}, "b": {"num": 1}, "c": {}, "d": {"num": 1}, "e": {"num": 1}}
        assert groups(known) == [["b", "d", "e"], ["a", "c"]]


def record(label, seed, loss, **more):
    cell = {"id": f"tiny/{label}/seed_{seed}", "table": "tiny", "label": label, "seed": seed}
    cost = {"train_cpu_s": 2.0 + len(label), "steps_per_s": 3.0, "peak_memory_mib": 500}
    cost["steps"] = 100 + seed if label == "tiny" else 200
    return {**cell, "status": "done", "metrics": {"loss": loss}, "cost": cost, **more}


class TestReport:
    @pytest.fixture
    def folder(self, suite_file, tmp_path):
        folder = tmp_path / "done"
        folder.mkdir()
        suite = load_suite(str(suite_file), seeds=[0, 1, 2])
        (folder / "suite.json").write_text(suite.to_json())
        for seed, noise in enumerate([0.0, 0.3, 0.1]):
            keep(folder / "results.jsonl", record("tiny", seed, 2.0 + noise))
            keep(folder / "results.jsonl", record("longer", seed, 1.0 + noise + 0.01 * seed))
        failure = {"status": "failed", "error": "eblvm: error: <no>"}
        keep(folder / "results.jsonl", {**record("broken", 0, 0.0), **failure})
        curve = folder / "cells/tiny/tiny/seed_0/metrics.csv"
        curve.parent.mkdir(parents=True)
        curve.write_text("step,val/loss\n9,3.0\n19,\n29,2.0\n")
        keep(folder / "results.jsonl", record("tiny", 0, 2.0, curve="metrics.csv"))
        return folder

    def test_table(self, folder, tmp_path):
        markdown, html = write_report([folder], tmp_path / "out")
        text = markdown.read_text()
        assert "| longer | **1.14 ± 0.16** | 3 |" in text
        assert "| tiny | 2.13 ± 0.15 | 3 |" in text, "a difference of all seeds is no chance"
        assert "| broken | – | 0 |" in text
        assert "| theirs | 1.5 | Someone, 2020 |" in text
        assert "failed: tiny/broken/seed_0: eblvm: error: <no>" in text
        assert "2 cells have not been run" in text
        assert re.search(r"- Recipes: tiny: \S+/tiny\.yaml; broken: \S+; longer: ", text)
        assert "- Steps of training: tiny: 100 to 102; longer: 200; broken: 200." in text
        assert "- Options of broken: --model.init_args.nothing=1\n" in text
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
            assert (markdown.parent / name).is_file()
        assert "tiny_curves.svg" in text
        page = html.read_text()
        assert '<td class="best">1.14 ± 0.16</td>' in page
        assert "&lt;no&gt;" in page
        assert not re.search(r'(?:src|href)="(?!data:|#)', page), "nothing outside of the file"

    def test_figures_of_seeds_that_are_not_there(self, folder, tmp_path):
        """A mean over the seeds that did not diverge is no best, and what has no test says so."""
        for seed, loss in enumerate([0.5, math.inf, math.nan]):
            keep(folder / "results.jsonl", record("tiny", seed, loss))
        text = write_report([folder], tmp_path)[0].read_text()
        assert "| tiny | 0.5 (1 of 3) ? | 3 |" in text
        assert "| longer | **1.14 ± 0.16** | 3 |" in text
        assert "not tested, for want of seeds or of spread: tiny" in text
        assert '<td class="untested">0.5 (1 of 3)</td>' in (tmp_path / "report.html").read_text()

    def test_protocols_that_differ(self, folder, tmp_path):
        def made(num, seed):
            return {"SampleQuality": {"num_fake": num, "split": "test", "seed": seed}}

        suite = json.loads((folder / "suite.json").read_text())
        suite["tables"][0] |= {"metrics": {"frechet": "lower"}, "published": []}
        (folder / "suite.json").write_text(json.dumps(suite))
        for label, num in (("tiny", 5000), ("longer", 2000), ("broken", 2000)):
            for seed in range(3):
                own = {"metrics": {"frechet": num + seed / len(label)}, "protocol": made(num, seed)}
                keep(folder / "results.jsonl", {**record(label, seed, 1.0), **own})
        text = write_report([folder], tmp_path)[0].read_text()
        assert re.search(r"\| tiny \| 5e\+03 ± 0.25 † \|", text)
        assert "SampleQuality of tiny: num_fake 5000, split test" in text
        assert "SampleQuality of longer, broken: num_fake 2000, split test" in text
        assert "against broken p" in text or "against longer p" in text
        assert "tiny p" not in text

    def test_seeds_of_a_recipe_that_changed_in_between(self, folder, tmp_path):
        for seed, found in enumerate("aab"):
            keep(folder / "results.jsonl", {**record("tiny", seed, 1.0), "config_sha256": found})
            keep(folder / "results.jsonl", {**record("longer", seed, 1.0), "config_sha256": "c"})
        text = write_report([folder], tmp_path)[0].read_text()
        assert "The seeds of tiny differ in more than their seeds" in text

    def test_a_failure_without_a_word(self, folder, tmp_path):
        silent = {"status": "failed", "error": ""}
        keep(folder / "results.jsonl", {**record("broken", 0, 0.0), **silent})
        markdown, html = write_report([folder], tmp_path)
        assert "failed: tiny/broken/seed_0: no reason" in markdown.read_text()
        assert "no reason" in html.read_text()

    def test_wall_time_where_a_gpu_worked(self, folder):
        assert "CPU s" in Section(gather([folder])[1][0]).header
        cost = {"train_wall_s": 7.5, "train_cpu_s": 9.0, "peak_gpu_memory_mib": 100}
        keep(folder / "results.jsonl", {**record("tiny", 0, 2.0), "cost": cost})
        section = Section(gather([folder])[1][0])
        assert "wall s" in section.header
        assert ("7.5", "") in section.rows()[0]
        assert b"wall time of training" in section.figures.get("cost", b"wall time of training")

    def test_reports_do_not_change_when_drawn_again(self, folder, tmp_path):
        first = write_report([folder], tmp_path / "one")[1].read_bytes()
        assert write_report([folder], tmp_path / "two")[1].read_bytes() == first

    def test_a_spread_that_hides_the_difference(self, folder, tmp_path):
        for seed, loss in enumerate([0.0, 9.0, 1.0]):
            keep(folder / "results.jsonl", record("tiny", seed, loss))
        text = write_report([folder], tmp_path)[0].read_text()
        assert "| tiny | 3.33 ± 4.9 ≈ | 3 |" in text

    def test_folders_side_by_side(self, folder, suite_file, tmp_path):
        other = tmp_path / "other"
        other.mkdir()
        suite_file.write_text(suite_file.read_text().replace("label: tiny", "label: outside"))
        suite = load_suite(str(suite_file))
        (other / "suite.json").write_text(suite.to_json())
        keep(other / "results.jsonl", record("outside", 0, 0.5))
        _, parts = gather([folder, other])
        assert [part.table.name for part in parts] == ["tiny"]
        assert parts[0].summary("outside", "loss").mean == 0.5
        assert parts[0].summary("longer", "loss").values.keys() == {0, 1, 2}

    def test_rows_of_one_label_with_other_budgets_stay_apart(self, folder, suite_file, tmp_path):
        other = tmp_path / "other"
        other.mkdir()
        text = suite_file.read_text().replace("epochs: 1", "epochs: 9")
        suite_file.write_text(
            text.replace("theirs", "others").replace("published", "note: b\n    published")
        )
        (other / "suite.json").write_text(load_suite(str(suite_file)).to_json())
        keep(other / "results.jsonl", record("tiny", 0, 9.0))
        _, (part,) = gather([folder, other])
        assert {"tiny (done)", "tiny (other)", "longer"} <= set(part.labels)
        assert part.summary("tiny (done)", "loss").values[0] == 2.0
        assert part.summary("tiny (other)", "loss").values == {0: 9.0}
        assert [row["label"] for row in part.table.published] == ["theirs", "others"]
        assert part.table.note == "b"
        assert len(gather([folder, folder])[1][0].records) == len(gather([folder])[1][0].records)

    def test_more_seeds_of_one_method_become_one_row(self, folder, suite_file, tmp_path):
        other = tmp_path / "other"
        other.mkdir()
        (other / "suite.json").write_text(load_suite(str(suite_file), seeds=[3]).to_json())
        keep(other / "results.jsonl", record("tiny", 3, 9.0))
        _, (part,) = gather([folder, other])
        assert part.summary("tiny", "loss").values.keys() == {0, 1, 2, 3}

    def test_a_folder_without_a_suite(self, tmp_path):
        with pytest.raises(UserError, match=r"holds no suite\.json"):
            gather([tmp_path])

    @pytest.mark.skipif(not CHROMIUM and "CI" not in os.environ, reason="there is no chromium")
    @pytest.mark.parametrize("width", [390, 1200])
    @pytest.mark.parametrize(("scheme", "dark"), [(0, True), (1, False)])
    def test_in_a_browser(self, folder, tmp_path, width, scheme, dark):
        """In a frame, for a window is never narrower than 500 pixels, and a phone is."""
        assert CHROMIUM, "where CI is set, chromium has to be there"
        protocol = {"SampleQuality": {"weights_sha256": "0123456789abcdef" * 4}}
        more = {"protocol": protocol, "curve": "metrics.csv"}
        keep(folder / "results.jsonl", record("tiny", 0, 2.0, **more))
        _, html = write_report([folder], tmp_path)
        probe = (
            "<script>document.querySelectorAll('details').forEach(d => { d.open = true });"
            "onload = () => parent.postMessage(JSON.stringify({width: innerWidth,"
            "wide: document.documentElement.scrollWidth,"
            "shown: document.querySelectorAll('details[open]').length,"
            "images: [...document.images].map(i => i.complete && i.naturalWidth > 0),"
            "ink: getComputedStyle(document.body).color}), '*')</script>"
        )
        html.write_text(html.read_text().replace("</body>", probe + "</body>"))
        frame = tmp_path / "frame.html"
        frame.write_text(
            "<!doctype html><style>:root { color-scheme: light dark }</style>"
            "<script>onmessage = e => { document.title = e.data }</script>"
            f'<iframe src="{html.name}" style="border: 0; width: {width}px"></iframe>'
        )
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        flags += "--disable-background-networking --disable-component-update --disable-sync "
        flags += f"--user-data-dir={tmp_path / 'chromium'} --window-size=1300,900 "
        flags += f"--virtual-time-budget=5000 --blink-settings=preferredColorScheme={scheme} "
        flags += "--dump-dom"
        done = subprocess.run(
            [CHROMIUM, *flags.split(), frame.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        title = re.search("<title>(.*?)</title>", done.stdout)[1].replace("&quot;", '"')
        seen = json.loads(title)
        assert seen["images"] == [True, True]
        assert seen["width"] == width
        assert seen["shown"] > 0
        assert seen["wide"] <= width, "the page itself never scrolls sideways"
        assert (int(re.search(r"\d+", seen["ink"])[0]) > 128) == dark, "light ink on dark ground"


class TestWorker:
    @pytest.fixture
    def started(self, monkeypatch):
        """What processes would have been started, and with what environment."""
        found = []

        class Process:
            returncode = 1

            def __init__(self, command, env, **more):
                found.append(env)

            def poll(self):
                return self.returncode

            def terminate(self):
                pass

            wait = terminate

        monkeypatch.setattr(runner.subprocess, "Popen", Process)
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
        assert worker.remaining({"epoch": "3"}) == pytest.approx(30), "the recipe's own epochs"
        worker.book()
        (config.parent / "last.ckpt").touch()
        again = Worker(Cell("t", "a", "tiny", 0), tmp_path, 1, None)
        assert again.wall == pytest.approx(20)
        clock[0] += 5
        assert again.remaining({"epoch": "4"}) is None, "no pace is known yet"
        clock[0] += 10
        assert again.remaining({"epoch": "5"}) == pytest.approx(40), "ten seconds an epoch"
        assert again.wall == pytest.approx(35)
        timed = Worker(Cell("t", "a", "tiny", 0, Budget(minutes=1)), tmp_path, 1, None)
        assert timed.remaining({}) == pytest.approx(40), "twenty seconds were spent before"

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
