r"""Fréchet distance between two sets of images, in a feature space.

.. math:: d^2 = \|\mu_1 - \mu_2\|^2 + \operatorname{tr}(\Sigma_1 + \Sigma_2)
    - 2 \operatorname{tr} \big(\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2}\big)^{1/2},

the squared 2-Wasserstein distance between Gaussians with the means and covariances of the features.
With Inception features it is known as FID.

References:
    The Fréchet Distance between Multivariate Normal Distributions (Dowson and Landau, 1982).
    GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium
    (Heusel et al., 2017).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from .features import FeatureExtractor
from .precision import device_only

__all__ = ["FrechetDistance", "frechet_distance"]


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> Tensor:
    r"""Squared Fréchet distance between two Gaussians.

    The last trace is the sum of the singular values of :math:`\Sigma_1^{1/2} \Sigma_2^{1/2}`, whose
    square is the symmetric product above. Unlike the root of that product it loses no digits where
    a covariance is singular.

    Arguments:
        mean1: First mean, with shape `(D,)`.
        cov1: First covariance, symmetric and positive semi-definite, with shape `(D, D)`.
        mean2: Second mean, with shape `(D,)`.
        cov2: Second covariance, with shape `(D, D)`.

    Returns:
        The squared distance in float64, a scalar.

    Raises:
        ValueError: If the shapes do not fit, or a number is not finite.
    """
    dim = len(mean1)
    shapes = [tuple(m.shape) for m in (mean1, cov1, mean2, cov2)]
    if shapes != [(dim,), (dim, dim)] * 2:
        raise ValueError(
            f"mean1, cov1, mean2, cov2 have shapes {shapes}; expected (D,), (D, D), (D,), (D, D) "
            "with one D. Compare features of one extractor."
        )
    mean1, cov1, mean2, cov2 = (m.double() for m in (mean1, cov1, mean2, cov2))
    if not all(m.isfinite().all() for m in (mean1, cov1, mean2, cov2)):
        raise ValueError(
            "a mean or a covariance is not finite. Look for samples that diverged: "
            "`images.isfinite().all()`."
        )
    root = torch.linalg.svdvals(_symmetric_sqrt(cov1) @ _symmetric_sqrt(cov2)).sum()
    return (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * root


def _symmetric_sqrt(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT  # rounding makes some zeros negative


class FrechetDistance(Metric):
    """Fréchet distance between real and generated images.

    The state is a count, a sum and a sum of outer products in float64 for either set, so the figure
    depends neither on the order of the images, nor on the batch size, nor on the number of ranks
    (up to float64 rounding). It does depend on the number of images: the distance of finite samples
    is biased upwards. Compare figures of equal `protocol` only.

    `update` with either set, then `compute`; calling the metric itself on a batch is undefined.

    Arguments:
        features: The feature space.
        keep_real: Keep the real images' statistics at `reset`, so that they are fed only once.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    features: FeatureExtractor
    real_num: Tensor
    real_sum: Tensor
    real_outer: Tensor
    fake_num: Tensor
    fake_sum: Tensor
    fake_outer: Tensor

    def __init__(self, features: FeatureExtractor, keep_real: bool = False) -> None:
        super().__init__()
        self.features = features
        self.keep_real = keep_real
        self._last_nums: tuple[int, int] | None = None
        dim = features.num_features
        zeros = {"num": torch.tensor(0), "sum": torch.zeros(dim, dtype=torch.float64)}
        zeros["outer"] = torch.zeros(dim, dim, dtype=torch.float64)
        for kind in ("real", "fake"):
            for name, zero in zeros.items():
                self.add_state(f"{kind}_{name}", zero.clone(), dist_reduce_fx="sum")

    def update(self, images: Tensor, real: bool) -> None:
        """Add a batch.

        Arguments:
            images: Images in [−1, 1], with shape `(B, C, H, W)`.
            real: Whether they are data, rather than samples.
        """
        x = self.features(images).double()
        if real:
            self.real_num += len(x)
            self.real_sum += x.sum(0)
            self.real_outer += x.mT @ x
        else:
            self.fake_num += len(x)
            self.fake_sum += x.sum(0)
            self.fake_outer += x.mT @ x

    def compute(self) -> Tensor:
        """The squared distance in float64, a scalar.

        Raises:
            ValueError: If either set has fewer than 2 images, or a feature is not finite.
        """
        real, fake = int(self.real_num), int(self.fake_num)
        if min(real, fake) < 2:
            raise ValueError(
                f"{real} real and {fake} generated images; a covariance needs 2 or more of both. "
                "Call `update(images, real=True)` and `update(images, real=False)` first."
            )
        self._last_nums = real, fake
        return frechet_distance(
            *_moments(self.real_num, self.real_sum, self.real_outer),
            *_moments(self.fake_num, self.fake_sum, self.fake_outer),
        )

    def reset(self) -> None:
        """Forget the images; the real ones stay if `keep_real`."""
        names = ("real_num", "real_sum", "real_outer") if self.keep_real else ()
        kept = {name: getattr(self, name) for name in names}
        super().reset()
        for name, value in kept.items():
            setattr(self, name, value)

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> nn.Module:
        return super()._apply(device_only(fn), exclude_state)

    @property
    def protocol(self) -> dict[str, Any]:
        """How the last figure was made, as a plain dictionary.

        `full_rank` is False where either set had too few images for its covariance to have full
        rank: the figure is defined, but tells little about the features beyond.

        Raises:
            RuntimeError: Before the first `compute`.
        """
        if self._last_nums is None:
            raise RuntimeError(
                "there is no protocol before there is a figure. Call `compute()` first."
            )
        real, fake = self._last_nums
        return {
            "metric": "frechet_distance",
            "num_real": real,
            "num_fake": fake,
            "full_rank": min(real, fake) > self.features.num_features,
            "dtype": "features float32, statistics float64",
            **self.features.protocol,
        }


def _moments(num: Tensor, total: Tensor, outer: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(D,)` and unbiased covariance `(D, D)`."""
    mean = total / num
    return mean, (outer - num * torch.outer(mean, mean)) / (num - 1)
