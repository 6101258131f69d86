"""Every installed recipe: its head, its references, and two steps of the real thing."""

import re
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml

from eblvm.cli import recipe_head, recipe_names, recipe_root

RECIPES = recipe_names()

FEW = {
    "num": 8,  # samples of a callback
    "num_tested": 8,
    "num_samples": 2,  # importance samples
    "resolution": 80,
    "bins": 5,
    "num_clusters": 4,
}
"""What stands in for the costly numbers of callbacks."""


def test_every_file_is_visited():
    files = [p for p in (Path(__file__).parents[1] / "recipes").rglob("*") if p.suffix == ".yaml"]
    assert len(RECIPES) == len(files) > 0


@cache
def parsed(name):
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load((recipe_root() / f"{name}.yaml").read_text(), loader)


def content(name):
    """A recipe as containers that may be changed."""
    return deepcopy(parsed(name))


def keys_named(tree, name, path=()):
    """Dotted paths of all keys of that name, without the `init_args` that the parser adds."""
    found = []
    for key, value in tree.items() if isinstance(tree, dict) else ():
        found += [".".join((*path, key))] if key == name else []
        found += keys_named(value, name, (*path, key))
    return found


def smaller(name, published=False):
    """Overrides that do a minute's work in a second; the networks narrower, or as published."""
    recipe = content(name)
    data = recipe["data"]["init_args"]
    images = recipe["data"]["class_path"].endswith("ImageDataModule")
    batch = 2 if data.get("image_size", 0) >= 32 else 4
    overrides = ["--trainer.accelerator=cpu", "--trainer.devices=1", "--threads=1"]
    overrides += [f"--data.init_args.batch_size={batch}", "--trainer.enable_progress_bar=false"]
    if images:
        overrides += ["--data.init_args.dataset=Synthetic", "--data.init_args.num_synthetic=80"]
        for key in ("val_size", "limit", "variant", "center_crop"):
            overrides += [f"--data.init_args.{key}=null"] * (key in data)
    elif "vocab_size" in data:
        overrides += ["--data.init_args.vocab_size=60"]
        for key in ("embedding_dim", "hidden_dim", "turn_dim"):
            for path in keys_named(recipe["model"], key, ("model",)):
                overrides += [f"--{path}=8"] * (not isinstance(at(recipe, path.split(".")), str))
        for path in keys_named(recipe["model"], "hidden_dims", ("model",)):
            overrides += [f"--{path}=[8]"]
    else:
        overrides += [f"--data.init_args.num_{s}=20" for s in ("train", "val", "test")]
    for path in keys_named(recipe["model"], "num_steps", ("model",)):
        if "kl_weight" not in path:  # where it counts all cycles of a schedule
            overrides += [f"--{path}=1"]
    for path in keys_named(recipe["model"], "step_size", ("model",)):
        sizes = at(recipe, path.split("."))
        if isinstance(sizes, list):  # one for each step
            overrides.append(f"--{path}={sizes[-1:]}")
    for path in keys_named(recipe["model"], "widths", ("model",)):
        widths = [max(2, width // 8) for width in at(recipe, path.split("."))]
        overrides += [f"--{path}={widths}"] * (not published)
    for path in keys_named(recipe["model"], "width", ("model",)):
        width = at(recipe, path.split("."))
        denoising = recipe["model"]["class_path"].endswith("DenoisingEBM")
        less = 8 if denoising else max(2, width // 16 * 2) if isinstance(width, int) else width
        overrides += [f"--{path}={less}"] * (isinstance(width, int) and not published)
    overrides += [f"--{path}=2" for path in keys_named(recipe["model"], "num_chains", ("model",))]
    overrides += [f"--{path}=0" for path in keys_named(recipe["model"], "warm_up", ("model",))]
    return overrides


def with_cheap_callbacks(name, folder, overrides):
    """A copy of the recipe whose callbacks look at a handful of samples; and what is left to say.

    Items of a list have no options of their own on the command line, so this is a file. Overrides
    of model and data are written into it, too: the command line takes a second for each.
    """
    recipe = content(name)
    left = []
    for override in overrides:
        path, value = override.removeprefix("--").split("=", 1)
        *place, key = path.split(".")
        if place and place[0] in ("model", "data"):
            at(recipe, place)[key] = yaml.safe_load(value)
        else:
            left.append(override)
    for callback in recipe.get("trainer", {}).get("callbacks") or []:
        arguments = callback.setdefault("init_args", {})
        arguments |= {key: FEW[key] for key in arguments.keys() & FEW.keys()}
        if "language_model" in arguments:
            arguments["language_model"]["init_args"] |= {"hidden_dim": 8, "num_epochs": 1}
        if "label" in arguments:
            arguments["label"] = "sentiment"  # of the stand-in
        for other in arguments.get("others", {}).values():  # whose files are not here
            other["init_args"] |= {"dataset": "Synthetic", "num_synthetic": 80, "center_crop": None}
        many = (".SampleQuality", ".GridDensity", ".Sentences", ".WrittenLanguage", ".Modes")
        many += (".OutOfDistribution", ".SampleDensity", ".StackedModes")
        if callback["class_path"].endswith(many):
            arguments["num"] = FEW["num"]
        if callback["class_path"].endswith(".BitsPerDimension"):
            arguments |= {"num_chains": 4, "num_temperatures": 3, "burn_in": 2}
    data = recipe["data"]["init_args"]
    if "corpus" in data:  # text that is at hand everywhere
        sizes = {"num_train": 40, "num_val": 20, "num_test": 20}
        if "Dialogue" in recipe["data"]["class_path"]:
            sizes["num_context"] = 2
        data["corpus"] = {"class_path": "eblvm.data.GrammarCorpus", "init_args": sizes}
        if re.search("CrossEntropy|FewLabels", (recipe_root() / f"{name}.yaml").read_text()):
            data["labels"] = ["sentiment"]  # one label, as it expects; with two values
    path = folder / f"{name.replace('/', '_')}.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return path, left


@pytest.mark.parametrize("name", RECIPES)
def test_head_says_what_where_from_and_how(name):
    path = recipe_root() / f"{name}.yaml"
    head = recipe_head(path)
    assert {"method", "data", "paper", "run", "cost", "expect"} <= head.keys()
    assert all(head.values())
    assert not re.search("TBD|COST-|EXPECT-", path.read_text())
    assert f"eblvm fit --config {name}" in head["run"]
    text = path.read_text()
    assert not re.search(r"(?<![\w.*:])/(?:home|root|work|data|mnt|tmp|scratch|Users)\b", text)
    assert "root" not in content(name)["data"]["init_args"], "files come from EBLVM_DATA"


def parts_named(tree):
    """Class paths in a recipe, as often as they stand there."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        if key == "class_path":
            yield value
        elif isinstance(value, dict | list):
            yield from parts_named(value)


def twins():
    """Recipes made of the same parts as another one: only numbers, densities and corpora differ.

    `smaller` and `with_cheap_callbacks` put the same numbers and data in the place of these, so the
    way from fit to samples is the same, too.
    """
    seen, found = set(), set()
    for name in sorted(RECIPES, key=lambda name: "/lebm" not in name):
        recipe = content(name)
        places = recipe["model"], recipe["trainer"].get("callbacks") or {}
        parts = recipe["data"]["class_path"], *(tuple(sorted(parts_named(p))) for p in places)
        if parts in seen:
            found.add(name)
        seen.add(parts)
    return found


TWINS = twins()


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in TWINS)) for n in RECIPES]
)
def test_trains_resumes_tests_and_samples(name, eblvm, tmp_path):
    visit(name, smaller(name), eblvm, tmp_path)


@pytest.mark.parametrize("name", sorted(TWINS))
def test_twins_train(name, eblvm, tmp_path):
    fitted(name, smaller(name), eblvm, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in RECIPES if keys_named(content(n), "widths")])
def test_networks_as_published(name, eblvm, tmp_path):
    visit(name, smaller(name, published=True), eblvm, tmp_path)


def fitted(name, overrides, eblvm, folder):
    """Two steps; their checkpoint."""
    recipe, overrides = with_cheap_callbacks(name, folder, overrides)
    if content(name).get("monitor", "val/loss") != "val/loss":
        overrides += ["--monitor=val/loss"]
    steps = ["--trainer.max_epochs=-1", "--trainer.check_val_every_n_epoch=1"]
    done = eblvm("fit", "--config", recipe, *overrides, *steps, "--trainer.max_steps=2")
    assert done.status == 0, done.err
    (last,) = folder.rglob("last.ckpt")
    assert torch.load(last)["global_step"] == 2
    return last


def visit(name, overrides, eblvm, folder):
    """Two steps, one more from the checkpoint, a test, and samples."""
    last = fitted(name, overrides, eblvm, folder)
    first = torch.load(last)
    done = eblvm("fit", "--ckpt_path", last, "--trainer.max_steps=3")
    assert done.status == 0, done.err
    second = torch.load(last)
    assert second["global_step"] == 3
    pairs = zip(first["state_dict"].values(), second["state_dict"].values(), strict=True)
    assert any(not torch.equal(old, new) for old, new in pairs)

    done = eblvm("test", "--ckpt_path", last)
    assert done.status == 0, done.err
    assert "test.json" in done.out
    kind = content(name)["model"]["class_path"].rpartition(".")[2]
    if kind not in ("LatentEBM", "ImageClassifier"):
        done = eblvm("sample", "--ckpt", last, "--num", 2, "--out", "samples.png")
        assert done.status == 0, done.err
        assert Path("samples.png").stat().st_size > 200
    if kind == "LatentEBM":
        text = "vocab_size" in content(name)["data"]["init_args"]
        likelihood = content(name)["model"]["init_args"]["latent"]["init_args"]["likelihood"]
        kind = likelihood["class_path"].rpartition(".")[2]
        out = "samples.txt" if kind == "CategoricalLikelihood" else "samples.png"
        out = "samples.pt" if kind == "MultinomialLikelihood" else out
        done = eblvm("sample", "--ckpt", last, "--num", 2, "--out", out)
        if kind == "DialogueLikelihood":
            assert done.status == 2 and "a response needs the turns before it" in done.err
            done = eblvm("sample", "--ckpt", last, "--symbol", 0)
            assert done.status == 2 and "--symbol 0: a response needs the turns" in done.err
            return
        assert done.status == 0, done.err
        assert Path(out).stat().st_size > (10 if text else 200)
        if any("SymbolVector" in part for part in parts_named(content(name)["model"])):
            done = eblvm("sample", "--ckpt", last, "--num", 2, "--symbol", 1, "--out", out)
            assert done.status == 0, done.err
            done = eblvm("sample", "--ckpt", last, "--symbol", 1000)
            assert done.status == 2 and "--symbol is 1000; this model has 0 to" in done.err


def references(tree, path=()):
    """`(path, target)` for every `${target}` in a recipe."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from references(value, (*path, key))
    elif isinstance(tree, list):
        for i, value in enumerate(tree):
            yield from references(value, (*path, i))
    elif isinstance(tree, str):
        for target in re.findall(r"\$\{([\w.]+)\}", tree):
            yield path, target


REFERENCES = {name: sorted({target for _, target in references(content(name))}) for name in RECIPES}


EXACT = "toy/reverse_kl_grbm_checkerboard"  # its entropy is enumerated


@pytest.mark.parametrize("name", [n for n in RECIPES if "/reverse_kl" in n and n != EXACT])
def test_baselines_after_vera_bound_an_entropy_that_there_is(name):
    """Without noise of the generator there is no density, and in 1/D of a square no nats."""
    settings = content(name)["model"]["init_args"]
    assert settings["decoder_noise"] is True
    assert settings["cycle"]["class_path"] == "eblvm.objectives.GaussianCycle"
    assert settings["gradient_penalty"] > 0
    rates = settings["learning_rates"].values()
    assert max(rates) / min(rates) < 3


def test_the_baseline_with_an_exact_entropy_is_bidvl_without_its_forward_terms():
    own, bidvl = (content(n)["model"] for n in (EXACT, "toy/bidvl_grbm_checkerboard"))
    for level in ("posterior", "joint"):
        assert own["init_args"].pop(level)["class_path"] == "eblvm.objectives.ReverseDivergence"
        bidvl["init_args"].pop(level)
    assert own == bidvl


def test_recipes_refer_to_their_own_values():
    assert sum(map(len, REFERENCES.values())) > 0


@pytest.mark.parametrize("name", [name for name in RECIPES if REFERENCES[name]])
def test_overrides_reach_every_reference(name, eblvm):
    recipe = content(name)
    value = {}
    for target in REFERENCES[name]:
        old = at(recipe, target.split("."))
        value[target] = old + 3 if isinstance(old, int) else old * 1.5
    overrides = [f"--{target}={new}" for target, new in value.items()]
    done = eblvm("fit", "--config", name, *overrides, "--print_config")
    assert done.status == 0, done.err
    printed = yaml.safe_load(done.out)
    for path, target in references(recipe):
        assert at(recipe, path) == f"${{{target}}}", "an expression: check it here"
        assert at(printed, path) == value[target], path


def at(tree, path):
    """The value at a path of keys and indices."""
    for key in path:
        tree = tree[key]
    return tree
