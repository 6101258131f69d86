"""Whether two figures were made alike, so that they may be compared."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from typing import Any

__all__ = ["FIGURES", "difference", "groups", "protocols_of", "worded"]

FIGURES: dict[str, tuple[str, ...]] = {
    "SampleQuality": (
        "frechet",
        "precision",
        "recall",
        "density",
        "coverage",
        "inception_score*",
    ),
    "ProposalQuality": ("proposal_*",),
    "ClassAccuracy": ("class_accuracy", "proposal_class_accuracy"),
    "Translations": ("translation_error", "psnr"),
    "Reconstructions": ("reconstruction_error",),
    "Likelihood": ("log_likelihood*", "released_log_likelihood*"),
    "BitsPerDimension": ("log_z_*", "ais_ess_*", "bits_per_dim_*"),
    "GridDensity": ("kl", "sample_kl"),
    "SampleDensity": ("sample_kl",),
    "Modes": ("near", "modes", "modes_least", "modes_most"),
    "StackedModes": ("stacked_modes", "stacked_kl"),
    "OutOfDistribution": ("ood/*",),
    "Sentences": ("word_kl", "distinct", "novel", "mean_length", "grammatical"),
    "SentenceReconstructions": ("reconstruction_bleu", "exact"),
    "WrittenLanguage": ("reverse_perplexity", "real_perplexity"),
    "Symbols": ("mutual_information*", "homogeneity_*", "accuracy_*"),
    "Clusters": ("cluster_homogeneity_*",),
    "Responses": ("response_bleu", "average", "extrema", "greedy"),
    "Control": ("control_*", "classifier_accuracy"),
}
"""The figures that a callback logs, as patterns."""

OWN = frozenset({"seed", "reference", "words", "reference_words", "brevity_penalty"})
"""Entries of a protocol that differ from seed to seed, and say nothing of how a figure is made."""

FREE = frozenset({"score", "num_others"})
"""Entries that are the method's own or another figure's: told, but no obstacle to a comparison."""


def protocols_of(record: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """What a record says of how one of its figures was made; empty where it says nothing.

    Arguments:
        record: A line of `results.jsonl`.
        metric: Name of the figure; what its callback says of other figures alone is left out.
    """
    found: dict[str, Any] = {}
    for name, protocol in record.get("protocol", {}).items():
        if not logs(name, metric):
            continue
        for key, value in protocol.items():
            others = isinstance(value, Mapping) and logs(name, key) and key != metric
            if key not in OWN | FREE and not others:
                found[key] = value
    return found


def logs(name: str, metric: str) -> bool:
    """Whether a callback logs a figure, both by name."""
    return any(fnmatch(metric, pattern) for pattern in FIGURES.get(name, ()))


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str | None:
    """The first entry that both have and that differs; None if they agree.

    Records of older versions lack entries, which is no difference; within entries, too.
    """
    for key in (key for key in one if key in other):
        if isinstance(one[key], Mapping) and isinstance(other[key], Mapping):
            if within := difference(one[key], other[key]):
                return f"{key}: {within}"
        elif one[key] != other[key]:
            return key
    return None


def groups(protocols: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Labels whose protocols agree, the largest group first, otherwise in their order.

    Arguments:
        protocols: What is known of each label's protocol.
    """
    found: list[tuple[dict[str, Any], list[str]]] = []
    for label, protocol in protocols.items():
        for known, labels in found:
            if difference(known, protocol) is None:
                known.update(protocol)
                labels.append(label)
                break
        else:
            found.append((dict(protocol), [label]))
    return sorted((labels for _, labels in found), key=len, reverse=True)


def worded(protocol: Mapping[str, Any]) -> str:
    """A protocol in a line, without what differs from seed to seed."""
    return ", ".join(f"{key} {value}" for key, value in flat(protocol) if key not in OWN)


def flat(protocol: Mapping[str, Any], prefix: str = "") -> Sequence[tuple[str, Any]]:
    """Entries, those of dictionaries within under the names of both."""
    found: list[tuple[str, Any]] = []
    for key, value in protocol.items():
        if isinstance(value, Mapping):
            inner = {k: v for k, v in value.items() if k not in OWN}
            found += flat(inner, f"{prefix}{key} ")
        else:
            found.append((f"{prefix}{key}", value))
    return found
