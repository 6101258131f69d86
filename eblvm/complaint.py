"""What the parser complains of, retold: which option, what is wrong, what helps.

jsonargparse reports a union's every failed branch and the whole configuration. The one line that
matters stands somewhere in between.
"""

import difflib
import importlib
import inspect
import re
from collections.abc import Iterable

__all__ = ["retell"]

FRAME = (
    "Parser key",
    "Problem with given class_path",
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
)
"""Beginnings of lines that say where, not what."""

PARTS = (
    *("models", "models.networks", "priors", "posteriors", "likelihoods", "energies", "samplers"),
    *("latent", "data", "evaluation", "metrics", "negatives", "schedules", "regularizers"),
    *("divergences", "objectives", "conditions", "pairs", "refining", "clustering", "outliers"),
    *("text_evaluation", "decoding", "rbm", "temperature"),
)


def retell(message: str, options: Iterable[str] = ()) -> str:
    """One or two lines in place of a parser's message.

    Arguments:
        message: What jsonargparse said.
        options: Names of the known options, such as `trainer.max_epochs`, for near names.
    """
    message = re.sub(r"<class '(?!NoneType)(?:[\w.]*\.)?(\w+)'>", r"\1", message)
    if unknown := re.match(r"\s*unrecognized arguments: --([\w.]+)", message):
        return f"there is no option --{unknown[1]}.{nearest(unknown[1], options)}"
    if stray := re.match(r"\s*unrecognized arguments: ([^-\s]\S*)", message):
        return f"unexpected argument {stray[1]!r}; a recipe is given as --config {stray[1]}"
    if missing := re.search(r"arguments are required: (.*)", message):
        names = ", ".join(f"--{name.partition('.')[2] or name}" for name in missing[1].split(", "))
        return f"no recipe given: add --config NAME (`eblvm recipes` lists them). Missing: {names}"
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    says = list(dict.fromkeys(line for line in lines if line and not line.startswith(FRAME)))
    where = ".".join(re.findall(r'Parser key "([^"]+)"', message))
    text = "; ".join(explain(line, message) for line in says) or lines[0]
    value = re.search(r"^\s*Given value: (.*)$", message, re.MULTILINE)
    if value and not re.search(r"^{|\(", value[1]) and repr(value[1]) not in text:
        text += f", got {value[1]!r}"
    return f"--{where}: {text}" if where else text


def explain(line: str, message: str) -> str:
    """One complaint, with what would have been right."""
    if role := re.match(r"Expected a dot import path string: (.*)", line):
        hint = nearest(role[1], parts()) or " Name it as in eblvm.priors.EnergyPrior."
        return f"there is no class {role[1]!r}.{hint}"
    key = re.match(r"Option '([\w.]+)' is not accepted", line)
    key = key or re.match(r"unrecognized arguments: --([\w.]+)", line)
    if key is None:
        return re.sub(r"^Expected an? (\w+)(?:\. Got value: (.*))?$", expected, line)
    paths = re.findall(r"class_path '([\w.]+)'", message)
    takes = parameters(paths[-1]) if paths else []
    hint = nearest(key[1].partition(".")[0], takes)
    owner = paths[-1].rpartition(".")[2] if paths else "it"
    return f"{owner} has no option {key[1]!r}.{hint} It takes {', '.join(takes)}."


def expected(match: re.Match[str]) -> str:
    """`expected int, got 'x'`, from the two forms in which that is said."""
    return f"expected {match[1]}" + (f", got {match[2]!r}" if match[2] else "")


def nearest(name: str, names: Iterable[str]) -> str:
    """` Did you mean …?`, or nothing."""
    near = difflib.get_close_matches(name, list(names), n=3, cutoff=0.6)
    return f" Did you mean {' or '.join(near)}?" if near else ""


def parts() -> list[str]:
    """The public names of the library's parts."""
    modules = (importlib.import_module(f"eblvm.{name}") for name in PARTS)
    return sorted({name for module in modules for name in module.__all__})


def parameters(class_path: str) -> list[str]:
    """What the constructor of a class takes."""
    module, _, name = class_path.rpartition(".")
    return list(inspect.signature(getattr(importlib.import_module(module), name)).parameters)
