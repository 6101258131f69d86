r"""Fidelity and diversity of samples, from nearest neighbors in a feature space.

The ball of a point :math:`x_i` of a set reaches to its k-th nearest neighbor in the same set, at
distance :math:`r_k(x_i)`; a set's balls together stand for its support. With M real points
:math:`x_i` and N generated ones :math:`y_j`:

.. math::
    \text{precision} &= \frac1N \sum_j 1[\exists i: |y_j - x_i| \le r_k(x_i)] \\
    \text{recall} &= \frac1M \sum_i 1[\exists j: |x_i - y_j| \le r_k(y_j)] \\
    \text{density} &= \frac1{kN} \sum_{i,j} 1[|y_j - x_i| < r_k(x_i)] \\
    \text{coverage} &= \frac1M \sum_i 1[\exists j: |y_j - x_i| < r_k(x_i)]

A point is not its own neighbor. The inequalities, strict or not, are those of the papers' released
code; they differ on ties only, and with strict ones identical sets have density 1. Distances are
computed in float64; up to 256 dimensions from differences, so that ties are exact, beyond by the
faster expanded squares, which are good to about 1e-7 of the features' norm.

References:
    Improved Precision and Recall Metric for Assessing Generative Models (Kynkäänniemi et al.,
    2019), Eqs. 1-2.
    Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020), Eqs. 3-4.
"""

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from .features import FeatureExtractor
from .precision import device_only

__all__ = [
    "DensityCoverage",
    "PrecisionRecall",
    "density_coverage",
    "neighbor_distance",
    "precision_recall",
]

_CHUNK = 1024  # rows of a distance matrix held at once
_EXACT, _FAST = "donot_use_mm_for_euclid_dist", "use_mm_for_euclid_dist"  # 13 times slower at 2048


def neighbor_distance(x: Tensor, k: int) -> Tensor:
    """Distance of each point to its k-th nearest neighbor among the others.

    Arguments:
        x: Points, with shape `(N, D)`.
        k: Which neighbor; 1 is the nearest.

    Returns:
        Distances in float64, with shape `(N,)`.

    Raises:
        ValueError: If a point has fewer than k others, or a number is not finite.
    """
    if not 1 <= k < len(x):
        raise ValueError(
            f"k is {k} for a set of {len(x)} points; expected 1 or more, and more points than k. "
            "Add samples, or choose a smaller k."
        )
    if not x.isfinite().all():
        raise ValueError(
            "a feature is not finite. Look for samples that diverged: `images.isfinite().all()`."
        )
    # the point itself, at distance 0, comes first
    return torch.cat([d.kthvalue(k + 1, dim=1).values for d in _distances(x, x)])


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> tuple[Tensor, Tensor]:
    """Precision and recall of a set of points.

    Arguments:
        real: Data, with shape `(M, D)`.
        fake: Samples, with shape `(N, D)`.
        k: Neighbors that set the radius of a ball; 3 in the paper.

    Returns:
        Precision and recall, two float64 scalars in [0, 1].
    """
    real_radius, fake_radius = neighbor_distance(real, k), neighbor_distance(fake, k)
    fake_inside = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    real_inside = []
    for distance, radius in zip(
        _distances(real, fake), real_radius.split(_CHUNK), strict=True
    ):  # (chunk, N), (chunk,)
        fake_inside |= (distance <= radius[:, None]).any(0)
        real_inside.append((distance <= fake_radius).any(1))
    return fake_inside.double().mean(), torch.cat(real_inside).double().mean()


def density_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """Density and coverage of a set of points.

    Arguments:
        real: Data, with shape `(M, D)`.
        fake: Samples, with shape `(N, D)`.
        k: Neighbors that set the radius of a ball; 5 in the paper.

    Returns:
        Density, in expectation 1 for samples of the data's own distribution and not bounded by 1,
        and coverage, in [0, 1]; two float64 scalars.
    """
    if len(fake) == 0:
        raise ValueError("there are no generated points; expected 1 or more. Add samples.")
    real_radius = neighbor_distance(real, k)
    inside = []
    for distance, radius in zip(
        _distances(real, fake), real_radius.split(_CHUNK), strict=True
    ):  # (chunk, N), (chunk,)
        inside.append((distance < radius[:, None]).sum(1))
    num_inside = torch.cat(inside).double()  # (M,): samples in each real ball
    return num_inside.sum() / (k * len(fake)), (num_inside > 0).double().mean()


def _distances(x: Tensor, y: Tensor) -> Iterator[Tensor]:
    """Distances of `x`, `(M, D)`, to `y`, `(N, D)`, in pieces `(chunk, N)` in float64."""
    y = y.double()
    for chunk in x.double().split(_CHUNK):
        yield torch.cdist(chunk, y, compute_mode=_EXACT if x.shape[1] <= 256 else _FAST)


class _Neighbors(Metric):
    """Collects the features of both sets; a subclass says what to do with them."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    features: FeatureExtractor
    real: list[Tensor]
    fake: list[Tensor]
    figure: str

    def __init__(self, features: FeatureExtractor, k: int) -> None:
        super().__init__()
        if k < 1:
            raise ValueError(f"k is {k}; expected 1 or more neighbors.")
        self.features = features
        self.k = k
        self._last_nums: tuple[int, int] | None = None
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, images: Tensor, real: bool) -> None:
        """Add a batch.

        Arguments:
            images: Images in [−1, 1], with shape `(B, C, H, W)`.
            real: Whether they are data, rather than samples.
        """
        # flat, because torchmetrics gathers a rank that has seen nothing as an empty vector
        (self.real if real else self.fake).append(self.features(images).flatten())

    def compute(self) -> dict[str, Tensor]:
        """The two figures by name, float64 scalars.

        Raises:
            ValueError: If a set has no more than k images, or a feature is not finite.
        """
        real, fake = self._points(self.real), self._points(self.fake)
        figures = self._figures(real, fake)
        self._last_nums = len(real), len(fake)
        return figures

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> nn.Module:
        return super()._apply(device_only(fn), exclude_state)

    @property
    def protocol(self) -> dict[str, Any]:
        """How the last figures were made, as a plain dictionary.

        Raises:
            RuntimeError: Before the first `compute`.
        """
        if self._last_nums is None:
            raise RuntimeError(
                "there is no protocol before there is a figure. Call `compute()` first."
            )
        real, fake = self._last_nums
        return {
            "metric": self.figure,
            "k": self.k,
            "num_real": real,
            "num_fake": fake,
            "dtype": "features float32, distances float64",
            **self.features.protocol,
        }

    @abstractmethod
    def _figures(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """From points `(M, D)` and `(N, D)`."""

    def _points(self, state: list[Tensor] | Tensor) -> Tensor:
        empty = isinstance(state, list) and not state
        flat = torch.zeros(0, device=self.device) if empty else dim_zero_cat(state)
        return flat.view(-1, self.features.num_features)


class PrecisionRecall(_Neighbors):
    """Precision (are samples like data?) and recall (is all of the data like some sample?).

    Both grow with k and with the number of images, and one outlier's large ball can raise them:
    compare figures of equal `protocol` only. Memory: one feature vector per image.

    Arguments:
        features: The feature space.
        k: Neighbors that set the radius of a ball; 3 in the paper.
    """

    figure = "precision_recall"

    def __init__(self, features: FeatureExtractor, k: int = 3) -> None:
        super().__init__(features, k)

    def _figures(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        precision, recall = precision_recall(real, fake, self.k)
        return {"precision": precision, "recall": recall}


class DensityCoverage(_Neighbors):
    """Density and coverage: like precision and recall, but robust against outliers.

    Only the real points have balls. Density counts how many of them a sample lies in; coverage is
    the fraction of them that hold a sample. Memory: one feature vector per image.

    Arguments:
        features: The feature space.
        k: Neighbors that set the radius of a ball; 5 in the paper.
    """

    figure = "density_coverage"

    def __init__(self, features: FeatureExtractor, k: int = 5) -> None:
        super().__init__(features, k)

    def _figures(self, real: Tensor, fake: Tensor) -> dict[str, Tensor]:
        density, coverage = density_coverage(real, fake, self.k)
        return {"density": density, "coverage": coverage}
