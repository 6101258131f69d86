"""Means, spreads, and whether a difference between two rows could be chance."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

__all__ = ["LEGEND", "LEVEL", "Comparison", "Summary", "compare", "holm", "p_value", "summarize"]


LEVEL = 0.05
"""Differences with an adjusted p below this are told from chance."""

LEGEND = (
    f"Mean ± standard deviation over seeds. ≈: not told from the best at p < {LEVEL} (t-test of "
    "differences where seeds pair, else Welch's; Holm's correction for the comparisons in it)."
)
"""What the marks in a table mean."""


@dataclass(frozen=True)
class Summary:
    """One metric of one row.

    Arguments:
        values: By seed.
    """

    values: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over seeds; NaN without any."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """The sample standard deviation; NaN for fewer than two seeds."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else math.nan

    def __str__(self) -> str:
        if not self.values:
            return "–"
        spread = "" if math.isnan(self.deviation) else f" ± {self.deviation:.2g}"
        return f"{self.mean:.3g}{spread}"


@dataclass(frozen=True)
class Comparison:
    """The best row against another one.

    Arguments:
        p: Adjusted for the number of comparisons; NaN where there is no test for so few seeds.
        test: `paired t` where both have the same seeds, otherwise `Welch`.
    """

    p: float
    test: str


def summarize(values: Mapping[int, float]) -> Summary:
    """The summary of finite figures; a figure that is NaN or infinite counts as none."""
    return Summary({seed: v for seed, v in values.items() if math.isfinite(v)})


def p_value(one: Mapping[int, float], other: Mapping[int, float]) -> tuple[float, str]:
    """Two-sided p of equal means, and the test.

    Seeds pair: the same seed gives two methods the same data in the same order. So rows with the
    same seeds are compared by the t-test of their differences, others by Welch's.

    Arguments:
        one: Figures by seed.
        other: Figures by seed.
    """
    if set(one) == set(other):
        differences = [one[seed] - other[seed] for seed in one]
        if len(differences) < 2:
            return math.nan, "none"
        if len(set(differences)) == 1:
            return (1.0 if differences[0] == 0 else 0.0), "paired t"
        return float(stats.ttest_1samp(differences, 0.0).pvalue), "paired t"
    if min(len(one), len(other)) < 2:
        return math.nan, "none"
    found = stats.ttest_ind([*one.values()], [*other.values()], equal_var=False)
    return float(found.pvalue), "Welch"


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's procedure; NaN stays and does not count."""
    counted = sorted((p, i) for i, p in enumerate(p_values) if not math.isnan(p))
    adjusted, least = list(p_values), 0.0
    for rank, (p, i) in enumerate(counted):
        least = max(least, min(1.0, (len(counted) - rank) * p))
        adjusted[i] = least
    return adjusted


def compare(rows: Mapping[str, Summary], better: str) -> tuple[str | None, dict[str, Comparison]]:
    """The best row, and each other row against it.

    Arguments:
        rows: Summaries by label; those without figures take no part.
        better: `lower` or `higher`.

    Returns:
        The label of the best mean, None where fewer than two rows have figures, and a comparison
        per other row.
    """
    present = {label: row for label, row in rows.items() if row.values}
    if len(present) < 2:
        return None, {}
    sign = 1 if better == "lower" else -1
    best = min(present, key=lambda label: sign * present[label].mean)
    others = [label for label in present if label != best]
    found = [p_value(present[best].values, present[label].values) for label in others]
    adjusted = holm([p for p, _ in found])
    tests = [test for _, test in found]
    pairs = zip(others, adjusted, tests, strict=True)
    return best, {label: Comparison(p, test) for label, p, test in pairs}
