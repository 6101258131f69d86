"""What becomes of results: statistics, protocols, reports."""

import inspect
import json
import math
import os
import re
import shutil
import subprocess

import pytest
from PIL import Image
from scipy import stats

from eblvm import density, evaluation, outliers, refining, text_evaluation
from eblvm.benchmarks.parts import gather
from eblvm.benchmarks.plots import frontier
from eblvm.benchmarks.protocols import FIGURES, difference, groups, protocols_of
from eblvm.benchmarks.report import Section, write_report
from eblvm.benchmarks.run import keep
from eblvm.benchmarks.statistics import Summary, compare, holm, p_value, summarize
from eblvm.benchmarks.suite import load_suite
from eblvm.cli import UserError

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


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
        assert difference({"a": {"num": 1, "dtype": "float64"}}, {"a": {"num": 1}}) is None
        assert difference({"a": {"num": 1}}, {"a": {"num": 2}}) == "a: num"
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
                figure = num + seed / len(label) + (label == "longer") * (1 + seed)
                own = {"metrics": {"frechet": figure}, "protocol": made(num, seed)}
                keep(folder / "results.jsonl", {**record(label, seed, 1.0), **own})
        text = write_report([folder], tmp_path)[0].read_text()
        assert re.search(r"\| tiny \| 5e\+03 ± 0.25 † \|", text)
        assert "SampleQuality of tiny: num_fake 5000, split test" in text
        assert "SampleQuality of longer; broken: num_fake 2000, split test" in text
        assert "against broken p" in text or "against longer p" in text
        assert "tiny p" not in text
        own = {"metrics": {"frechet": 2000.0}, "protocol": made(1000, 2)}
        keep(folder / "results.jsonl", {**record("longer", 2, 1.0), **own})
        text = write_report([folder], tmp_path)[0].read_text()
        assert "| longer | 2e+03 ± 1.1 † |" in text, "its own seeds do not compare"

    def test_where_all_are_the_same_none_is_best(self, folder, tmp_path):
        for label in ("tiny", "longer", "broken"):
            for seed in range(3):
                keep(folder / "results.jsonl", record(label, seed, 0.0))
        text = write_report([folder], tmp_path)[0].read_text()
        assert "**0" not in text
        assert "best" not in text.split("| tiny")[1]

    def test_what_none_beats_in_cost_and_figure(self):
        points = [(3.0, 1.0), (1.0, 5.0), (2.0, 6.0), (2.0, 4.0), (4.0, 1.0)]
        assert frontier(points, "lower") == [(1.0, 5.0), (2.0, 4.0), (3.0, 1.0)]
        assert frontier(points, "higher") == [(1.0, 5.0), (2.0, 6.0)]

    def test_rows_without_samples_and_the_seeds_are_named(self, folder, tmp_path):
        keep(folder / "results.jsonl", {**record("tiny", 0, 1.0), "samples": None})
        text = write_report([folder], tmp_path)[0].read_text()
        assert "No samples were drawn of tiny" in text
        assert "- Seeds: 0, 1, 2." in text

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
        for label in ("tiny", "longer"):
            keep(folder / "results.jsonl", {**record(label, 0, 2.0), "cost": cost})
        section = Section(gather([folder])[1][0])
        assert "wall s" in section.header
        assert ("7.5", "") in section.rows()[0]
        assert b"wall time of training" in section.figures["cost"]

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
        suites, parts = gather([folder, other])
        assert [suite.name for suite in suites] == ["mine"]
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
        suite = json.loads((folder / "suite.json").read_text())
        names = ("frechet", "precision", "recall", "density", "coverage", "cluster_homogeneity")
        suite["tables"][0]["metrics"] |= dict.fromkeys(names, "higher")
        (folder / "suite.json").write_text(json.dumps(suite))
        figures = {"loss": 2.0, **{name: 123456.789 for name in names}}
        more = {"protocol": protocol, "metrics": figures}
        files = {"tiny": "samples.png", "longer": "samples.txt"}
        for label, name in files.items():
            own = folder / f"cells/tiny/{label}/seed_0"
            own.mkdir(parents=True, exist_ok=True)
            if label == "tiny":
                Image.new("RGB", (900, 900)).save(own / name)
            else:
                (own / name).write_text("a long sentence of many words . " * 20 + "w" * 300 + "\n")
            curve = {"curve": "metrics.csv"} if label == "tiny" else {}
            own_record = {**record(label, 0, 2.0), **more, **curve, "samples": name}
            keep(folder / "results.jsonl", own_record)
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
        assert seen["images"] == [True, True, True], "costs, curves, samples"
        assert seen["width"] == width
        assert seen["shown"] > 0
        assert seen["wide"] <= width, "the page itself never scrolls sideways"
        assert (int(re.search(r"\d+", seen["ink"])[0]) > 128) == dark, "light ink on dark ground"
