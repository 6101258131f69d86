"""The house has floors: imports run one way, as `docs/architecture.md` draws it."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("eblvm", "models", "benchmarks")
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))

PURE = {"eblvm.samplers", "eblvm.objectives"}
PARTS = {"eblvm.energies", "eblvm.priors", "eblvm.posteriors", "eblvm.likelihoods", "eblvm.latent"}
SHELL = {"eblvm.cli", "eblvm.training", "eblvm.checkpoint", "eblvm.callbacks", "eblvm.evaluation"}
SHELL |= {
    "eblvm.outliers",
    "eblvm.density",
    "eblvm.complaint",
    "eblvm.diagnosis",
    "eblvm.clustering",
    "eblvm.text_evaluation",
}
SHELL |= {"eblvm.using", "eblvm.refining", "eblvm.runs"}

BELOW = {
    "eblvm.objectives": set(),
    "eblvm.samplers": set(),
    "eblvm.energies": set(),
    "eblvm.decoding": set(),
    "eblvm.schedules": {"eblvm.samplers"},
    "eblvm.likelihoods": {"eblvm.samplers", "eblvm.objectives", "eblvm.decoding"},
    "eblvm.priors": {
        *("eblvm.energies", "eblvm.schedules", "eblvm.samplers", "eblvm.objectives"),
        "eblvm.signs",
    },
    "eblvm.posteriors": {"eblvm.priors", "eblvm.likelihoods", "eblvm.samplers"},
    "eblvm.latent": {
        *("eblvm.priors", "eblvm.posteriors", "eblvm.likelihoods"),
        *("eblvm.samplers", "eblvm.objectives", "eblvm.decoding"),
    },
    "eblvm.regularizers": {
        *("eblvm.latent", "eblvm.priors", "eblvm.posteriors", "eblvm.objectives"),
    },
    "eblvm.negatives": {
        *("eblvm.priors", "eblvm.posteriors", "eblvm.likelihoods", "eblvm.latent"),
        *("eblvm.samplers", "eblvm.objectives"),
    },
    "eblvm.divergences": {
        *("eblvm.energies", "eblvm.schedules", "eblvm.samplers", "eblvm.objectives"),
    },
    "eblvm.matching": {"eblvm.samplers"},
    "eblvm.temperature": {"eblvm.samplers"},
    "eblvm.averaging": set(),
    "eblvm.signs": set(),
    "eblvm.conditions": set(),
    "eblvm.data": set(),
    "eblvm.pictures": set(),
}
"""A module and what of ours it may import, besides its own folder."""


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "eblvm" else ("eblvm", *parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path):
    """Absolute names of all that a file imports, at its top or within a function."""
    package = module_name(path)
    if path.name != "__init__.py":
        package = package.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) + 1 - node.level]
            base = ".".join([*(parents if node.level else []), *filter(None, [node.module])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def within(name, modules):
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def test_all_files_are_visited_and_names_resolved():
    assert len(FILES) > 40
    names = set(imports(ROOT / "eblvm" / "latent.py"))
    assert {"eblvm.priors.Prior", "eblvm.samplers.noise_like", "torch.nn"} <= names


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_no_import_points_upward(path):
    me = module_name(path)
    ours = {name for name in imports(path) if within(name, {"eblvm"})}
    outer = {name for name in imports(path) if not within(name, {"eblvm"})}
    if within(me, {"eblvm.models"}):
        assert not {n for n in ours if within(n, SHELL | {"eblvm.recipes", "eblvm.benchmarks"})}
        if within(me, {"eblvm.models.networks"}):
            assert all(within(n, {"eblvm.models.networks", "eblvm.energies"}) for n in ours)
        return
    if within(me, {"eblvm.benchmarks"}):
        return
    if me not in SHELL:
        assert not {n for n in ours if within(n, {"eblvm.models", "eblvm.benchmarks"} | SHELL)}
        if not within(me, {"eblvm.data"}):
            assert not {n for n in outer if within(n, {"pytorch_lightning"})}
    if not within(me, SHELL | {"eblvm.data", "eblvm.models"}):
        assert not {n for n in ours if within(n, {"eblvm.data"})}
    for module, allowed in BELOW.items():
        if within(me, {module}):
            assert all(within(n, allowed | {module}) for n in ours)
    if within(me, PURE):
        plots = {"matplotlib"} if me == "eblvm.samplers.plots" else set()
        assert all(within(n, {"torch", *plots, *sys.stdlib_module_names}) for n in outer)


def test_the_light_door_imports_the_standard_library_only_at_its_top():
    tree = ast.parse((ROOT / "eblvm" / "cli.py").read_text())
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {n.module if isinstance(n, ast.ImportFrom) else n.names[0].name for n in top}
    assert all(within(name, {"eblvm", *sys.stdlib_module_names}) for name in names)
