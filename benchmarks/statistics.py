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
    "differences where seeds pair, else Welch's; Holm's correction for the comparisons in it). "
    "?: not tested against the best, for want of seeds or of spread. (1 of 3): the mean of those "
    "seeds that have a finite figure; the best is one of the rows that lack fewest. †: made by "
    "another protocol than most of the column, so compared with none."
)
"""What the marks in a table mean."""


@dataclass(frozen=True)
class Summary:
    """One metric of one row.

    Arguments:
        values: By seed, finite.
        missing: Seeds without a finite figure, of those that the row should have.
        pairs: Whether a seed gave this row the same data, in the same order, as the others.
    """

    values: Mapping[int, float]
    missing: int = 0
    pairs: bool = True

    @property
    def mean(self) -> float:
        """Over seeds; NaN without any."""
        return statistics.fmean(self.values.values()) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """The sample standard deviation; NaN for fewer than two seeds."""
        return statistics.stdev(self.values.values()) if len(self.values) > 1 else math.nan

    def __str__(self) -> str:
        wanted = len(self.values) + self.missing
        share = f" ({len(self.values)} of {wanted})" if self.missing else ""
        if not self.values:
            return f"–{share}"
        spread = "" if math.isnan(self.deviation) else f" ± {self.deviation:.2g}"
        return f"{self.mean:.3g}{spread}{share}"


@dataclass(frozen=True)
class Comparison:
    """The best row against another one.

    Arguments:
        p: Adjusted for the number of comparisons; NaN where there is no test.
        test: `paired t` where both have the same seeds, `Welch` otherwise, `none` for too few seeds
            or no spread.
    """

    p: float
    test: str

    @property
    def kind(self) -> str:
        """`untested`, `tied` where the difference could be chance, or nothing."""
        if math.isnan(self.p):
            return "untested"
        return "tied" if self.p >= LEVEL else ""


def summarize(
    values: Mapping[int, float], wanted: int | None = None, pairs: bool = True
) -> Summary:
    """The summary of finite figures; one that is NaN or infinite counts as missing.

    Arguments:
        values: By seed.
        wanted: How many seeds there should be, if more than these.
        pairs: As of `Summary`.
    """
    finite = {seed: v for seed, v in values.items() if math.isfinite(v)}
    return Summary(finite, max(len(values), wanted or 0) - len(finite), pairs)


def p_value(
    one: Mapping[int, float], other: Mapping[int, float], pairs: bool = True
) -> tuple[float, str]:
    """Two-sided p of equal means, and the test; NaN and `none` where there is none.

    Seeds pair: the same seed gives two methods the same data in the same order, if their recipes
    have equal sizes of data and batch. So rows with the same seeds are compared by the t-test of
    their differences, which is valid where they do not pair, too; others by Welch's. A difference
    that is the same for all seeds leaves no spread to judge it by.

    Arguments:
        one: Figures by seed.
        other: Figures by seed.
        pairs: Whether equal seeds mean equal data.
    """
    if min(len(one), len(other)) < 2:
        return math.nan, "none"
    if pairs and set(one) == set(other):
        differences = [one[seed] - other[seed] for seed in one]
        if constant(differences, [*one.values(), *other.values()]):
            return (1.0, "paired t") if not any(differences) else (math.nan, "none")
        return float(stats.ttest_1samp(differences, 0.0).pvalue), "paired t"
    a, b = [*one.values()], [*other.values()]
    if constant(a, a) and constant(b, b):
        return (1.0, "Welch") if a[0] == b[0] else (math.nan, "none")
    return float(stats.ttest_ind(a, b, equal_var=False).pvalue), "Welch"


def constant(values: Sequence[float], scale: Sequence[float]) -> bool:
    """Whether values differ by no more than rounding does for figures of this scale."""
    return max(values) - min(values) <= 1e-12 * max(map(abs, scale))


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
        The label of the best mean among the rows that lack fewest seeds, None where fewer than two
        rows have figures, and a comparison per other row.
    """
    present = {label: row for label, row in rows.items() if row.values}
    if len(present) < 2:
        return None, {}
    sign = 1 if better == "lower" else -1
    fewest = min(row.missing for row in present.values())
    whole = [label for label, row in present.items() if row.missing == fewest]
    best = min(whole, key=lambda label: sign * present[label].mean)
    others = [label for label in present if label != best]
    found = [
        p_value(
            present[best].values,
            present[label].values,
            present[best].pairs and present[label].pairs,
        )
        for label in others
    ]
    adjusted = holm([p for p, _ in found])
    tests = [test for _, test in found]
    pairs = zip(others, adjusted, tests, strict=True)
    return best, {label: Comparison(p, test) for label, p, test in pairs}
