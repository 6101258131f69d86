"""The benchmark suite: suites, statistics, cells that are never lost, reports."""

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
from scipy import stats

from eblvm.benchmarks.report import gather, write_report
from eblvm.benchmarks.run import keep, read_results
from eblvm.benchmarks.statistics import Summary, compare, holm, p_value, summarize
from eblvm.benchmarks.suite import Budget, Suite, load_suite, suite_names
from eblvm.cli import UserError

TINY = Path(__file__).with_name("tiny.yaml")

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

    def test_near_names(self):
        with pytest.raises(UserError, match="Did you mean quick"):
            load_suite("quik")


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
        assert str(summarize({0: math.inf})) == "–"


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


def record(label, seed, loss, **more):
    cell = {"id": f"tiny/{label}/seed_{seed}", "table": "tiny", "label": label, "seed": seed}
    cost = {"train_cpu_s": 2.0 + len(label), "steps_per_s": 3.0, "peak_memory_mib": 500}
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
        for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", text):
            assert (markdown.parent / name).is_file()
        assert "tiny_curves.svg" in text
        page = html.read_text()
        assert '<td class="best">1.14 ± 0.16</td>' in page
        assert "&lt;no&gt;" in page
        assert not re.search(r'(?:src|href)="(?!data:|#)', page), "nothing outside of the file"

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

    def test_a_folder_without_a_suite(self, tmp_path):
        with pytest.raises(UserError, match=r"holds no suite\.json"):
            gather([tmp_path])

    @pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
    @pytest.mark.parametrize(("width", "scheme", "dark"), [(390, 0, True), (1200, 1, False)])
    def test_in_a_browser(self, folder, tmp_path, width, scheme, dark):
        _, html = write_report([folder], tmp_path)
        probe = (
            "<script>document.title = JSON.stringify({wide: document.documentElement.scrollWidth,"
            "images: [...document.images].map(i => i.complete && i.naturalWidth > 0),"
            "ink: getComputedStyle(document.body).color})</script>"
        )
        html.write_text(html.read_text().replace("</body>", probe + "</body>"))
        flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run "
        flags += "--disable-background-networking --disable-component-update --disable-sync "
        flags += f"--user-data-dir={tmp_path / 'chromium'} --window-size={width},900 "
        flags += f"--virtual-time-budget=5000 --blink-settings=preferredColorScheme={scheme} "
        flags += "--dump-dom"
        done = subprocess.run(
            ["chromium", *flags.split(), html.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        title = re.search("<title>(.*?)</title>", done.stdout)[1].replace("&quot;", '"')
        seen = json.loads(title)
        assert seen["images"] == [True, True]
        assert seen["wide"] <= max(width, 500), "the page itself never scrolls sideways"
        assert (int(re.search(r"\d+", seen["ink"])[0]) > 128) == dark, "light ink on dark ground"


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
    assert "no option 'nothing'" in before["tiny/broken/seed_0"]["error"]

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
    assert resumed["environment"]["packages"]["torch"]
    assert (out / "report.html").is_file()

    whole = bench(suite_file, "--out", "whole", "--jobs", 2, folder=tmp_path, **quiet)
    whole.communicate()
    for found in read_results(tmp_path / "whole/results.jsonl"):
        known = after[found["id"]]
        assert found["status"] == known["status"]
        for key in ("metrics", "config_sha256"):
            assert found.get(key) == known.get(key), "the same seed, the same figures"


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
