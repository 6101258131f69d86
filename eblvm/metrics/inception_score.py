r"""The Inception score: are samples of clear classes, and of many?

.. math:: \exp\, \mathbb{E}_x\, KL(p(y|x) \| p(y)), \qquad p(y) = \mathbb{E}_x\, p(y|x),

between 1 and the number of classes. It knows the data by the classifier alone: samples that repeat
one image of each class have a perfect score. Published figures are of 50,000 samples in ten parts,
by the logits of Inception without their bias.

References:
    Improved Techniques for Training GANs (Salimans et al., 2016), Sec. 4.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from .features import FeatureExtractor
from .precision import device_only

__all__ = ["InceptionScore"]


class InceptionScore(Metric):
    """The score of generated images: mean and standard deviation over parts of them.

    The state is sums in float64 for each part, to which images are dealt in turn.

    Arguments:
        features: Of a classifier, such as `InceptionFeatures`.
        num_splits: Parts. The fewer images a part has, the lower its score.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    features: FeatureExtractor
    num: Tensor
    total: Tensor
    negative_entropy: Tensor

    def __init__(self, features: FeatureExtractor, num_splits: int = 10) -> None:
        super().__init__()
        if num_splits < 1:
            raise ValueError(f"num_splits is {num_splits}; expected 1 or more.")
        self.features = features
        self.num_splits = num_splits
        num_classes = features.logits(torch.zeros(1, features.num_features)).shape[1]
        zeros = torch.zeros(num_splits, dtype=torch.float64)
        self.add_state("num", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("negative_entropy", zeros.clone(), dist_reduce_fx="sum")
        table = torch.zeros(num_splits, num_classes, dtype=torch.float64)
        self.add_state("total", table, dist_reduce_fx="sum")

    def update(self, images: Tensor) -> None:
        """Add a batch of samples in [−1, 1], with shape `(B, C, H, W)`."""
        log_p = self.features.logits(self.features(images)).double().log_softmax(1)  # (B, K)
        p = log_p.exp()
        part = (int(self.num.sum()) + torch.arange(len(p), device=p.device)) % self.num_splits
        self.num.index_add_(0, part, torch.ones_like(p[:, 0]))
        self.negative_entropy.index_add_(0, part, (p * log_p).sum(1))
        self.total.index_add_(0, part, p)

    def compute(self) -> dict[str, Tensor]:
        """`inception_score` and `inception_score_std`, float64 scalars.

        Raises:
            ValueError: If a part has no image.
        """
        if not bool((self.num > 0).all()):
            raise ValueError(
                f"{int(self.num.sum())} images for {self.num_splits} parts; expected one in each "
                "or more. Add samples, or lower num_splits."
            )
        mean = self.total / self.num[:, None]
        divergence = self.negative_entropy / self.num - torch.special.xlogy(mean, mean).sum(1)
        scores = divergence.exp()
        return {
            "inception_score": scores.mean(),
            "inception_score_std": scores.std(correction=0),
        }

    def _apply(
        self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = ""
    ) -> nn.Module:
        return super()._apply(device_only(fn), exclude_state)
