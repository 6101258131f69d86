"""Terms beside the bound: what symbols say about latents, and labels about symbols.

Learners add `weight` times the value of each to their loss. A regularizer sees the model, the batch
and what was inferred of it, and reads symbols off latents through the prior.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .latent import LatentVariableModel
from .objectives.information import mutual_information
from .posteriors import Inference

__all__ = ["CrossEntropy", "FewLabels", "InformationBottleneck", "Regularizer", "check_labels"]

UNLABELED = -1
"""The label of rows that have none."""


class Regularizer(ABC):
    """A scalar term of the loss.

    Arguments:
        weight: Its factor.
        when_autoencoding: Whether it counts while the prior's weight is 0.

    Attributes:
        name: Under which the value is logged.
    """

    name: str

    def __init__(self, weight: float, when_autoencoding: bool = False) -> None:
        if not weight >= 0:
            raise ValueError(f"weight is {weight}; expected 0 or more.")
        self.weight = weight
        self.when_autoencoding = when_autoencoding

    @abstractmethod
    def __call__(
        self,
        latent: LatentVariableModel,
        batch: tuple[Tensor, Tensor],
        inference: Inference,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """The value for a batch `(x, label)`, to be minimized; a scalar, in nats."""


def symbol_logits(
    latent: LatentVariableModel,
    inference: Inference,
    generator: torch.Generator | None,
    noise: bool,
    num_draws: int,
) -> Tensor:
    """Logits of the inferred latents, or of further draws of them: `(B, K)`, `(num_draws B, K)`.

    Those of the inferred latents are computed once: all terms of a step see the same z_0.
    """
    if num_draws:
        z = torch.cat([inference.draw(generator) for _ in range(num_draws)])
        repeated = {name: c.repeat(num_draws, 1) for name, c in inference.conditions.items()}
        return latent.prior.symbol_logits(z, generator, noise, **repeated)
    if noise not in inference.symbols:
        logits = latent.prior.symbol_logits(inference.z, generator, noise, **inference.conditions)
        inference.symbols[noise] = logits
    return inference.symbols[noise]


class InformationBottleneck(Regularizer):
    """Minus the mutual information of latent and symbol, as the batch estimates it.

    With the bound's own terms this is the variational information bottleneck: latents keep what
    tells the symbol, and forget the rest.

    References:
        Latent Space Energy-Based Model of Symbol-Vector Coupling for Text Generation and
        Classification (Pang and Wu, 2021).

    Arguments:
        weight: λ.
        noise: Whether a diffusion prior reads symbols off z_0 instead of z.
        num_draws: Fresh draws of q(z|x) per row; 0 takes the one that the bound uses.
        when_autoencoding: Whether it counts while the prior's weight is 0.
    """

    name = "information"

    def __init__(
        self,
        weight: float,
        noise: bool = True,
        num_draws: int = 0,
        when_autoencoding: bool = False,
    ) -> None:
        super().__init__(weight, when_autoencoding)
        self.noise = noise
        self.num_draws = num_draws

    def __call__(
        self,
        latent: LatentVariableModel,
        batch: tuple[Tensor, Tensor],
        inference: Inference,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        logits = symbol_logits(latent, inference, generator, self.noise, self.num_draws)
        return -mutual_information(logits)


class CrossEntropy(Regularizer):
    """Cross-entropy of the symbols against the batch's labels, over the rows that have one.

    Labels are the data's, or the pseudo-labels of :class:`eblvm.clustering.GeometricClustering`,
    which stand in their place. Rows labeled −1 do not count: with a few labels kept this is
    semi-supervised learning. Where no row can have one, training does not start.

    Arguments:
        weight: λ.
        noise: Whether a diffusion prior reads symbols off z_0 instead of z.
        mean: Whether symbols are read off the mean of q(z|x) instead of a draw.
        pseudo: Whether labels are pseudo-labels, which training batches alone carry: elsewhere the
            value is 0.
        when_autoencoding: Whether it counts while the prior's weight is 0.
    """

    name = "cross_entropy"

    def __init__(
        self,
        weight: float,
        noise: bool = True,
        mean: bool = False,
        pseudo: bool = False,
        when_autoencoding: bool = False,
    ) -> None:
        super().__init__(weight, when_autoencoding)
        self.noise = noise
        self.mean = mean
        self.pseudo = pseudo

    def __call__(
        self,
        latent: LatentVariableModel,
        batch: tuple[Tensor, Tensor],
        inference: Inference,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if self.pseudo and not latent.training:
            return inference.z.new_zeros(())
        if self.mean:
            inference = inference.at_mean()
        logits = symbol_logits(latent, inference, generator, self.noise, 0)
        return cross_entropy(logits, batch[1])


class FewLabels(Regularizer):
    """Cross-entropy of the symbols on batches of a small labeled subset, beside any batch.

    For learning from a few labels among many data: rows are drawn from the subset with replacement,
    and symbols are read off the means of q(z|x). :class:`eblvm.clustering.LabeledSubset` fills
    the subset. Only training has this term.

    References:
        Latent Diffusion Energy-Based Model for Interpretable Text Modelling (Yu et al., 2022),
        released code for AGNews, which takes a step of its own on each such batch.

    Arguments:
        weight: λ.
        batch_size: Rows per step.
        when_autoencoding: Whether it counts while the prior's weight is 0.
    """

    name = "few_labels"

    def __init__(
        self, weight: float, batch_size: int = 200, when_autoencoding: bool = False
    ) -> None:
        super().__init__(weight, when_autoencoding)
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more.")
        self.batch_size = batch_size
        self.subset: tuple[Tensor, Tensor] | None = None
        """Data `(N, *event)` and their labels int64 `(N,)`, on any device."""

    def __call__(
        self,
        latent: LatentVariableModel,
        batch: tuple[Tensor, Tensor],
        inference: Inference,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        if not latent.training:
            return inference.z.new_zeros(())
        if self.subset is None:
            raise RuntimeError(
                "FewLabels has no labeled subset; add eblvm.clustering.LabeledSubset to the "
                "trainer's callbacks, or set `subset` to (x, label)."
            )
        device = inference.z.device
        x, label = self.subset
        rows = torch.randint(len(x), (self.batch_size,), generator=generator, device=device)
        drawn = latent.infer(x.to(device)[rows], generator).at_mean()
        logits = symbol_logits(latent, drawn, generator, noise=False, num_draws=0)
        return cross_entropy(logits, label.to(device)[rows])


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over labeled rows of −log p(label), a scalar; 0 where no row has a label.

    Arguments:
        logits: With shape `(B, K)`.
        label: int64 `(B,)` in 0 … K − 1, or −1 for none.

    Raises:
        ValueError: If labels do not go with the logits.
    """
    if label.is_floating_point() or label.shape != logits.shape[:1]:
        raise ValueError(
            f"labels have dtype {label.dtype} and shape {tuple(label.shape)}; expected integers "
            f"({len(logits)},), one per row. Does the data module give labels?"
        )
    if label.device.type == "cpu" and len(label) and int(label.max()) >= logits.shape[1]:
        raise ValueError(
            f"a label is {int(label.max())}, but the prior has {logits.shape[1]} symbols; raise "
            "the tilt's out_dim, or cluster into fewer."
        )
    total = F.cross_entropy(logits, label, ignore_index=UNLABELED, reduction="sum")
    return total / (label != UNLABELED).sum().clamp_min(1)


def check_labels(regularizers: Sequence[Regularizer], given: bool, labels: Tensor | None) -> None:
    """Refuse to train a `CrossEntropy` against labels that nothing gives.

    Arguments:
        regularizers: Those of the training.
        given: Whether something labels the training data anew, as clusters do.
        labels: The training data's own, negative where there is none; None if not known.

    Raises:
        ValueError: If pseudo-labels come from nowhere, or no training datum has a label.
    """
    terms = [term for term in regularizers if isinstance(term, CrossEntropy)]
    if not terms or given:
        return
    if any(term.pseudo for term in terms):
        raise ValueError(
            "CrossEntropy has `pseudo: true`, and nothing gives pseudo-labels. Add "
            "eblvm.clustering.GeometricClustering to the trainer's callbacks, or set `pseudo: "
            "false` to learn from the data's own labels."
        )
    if labels is not None and bool((labels < 0).all()):
        raise ValueError(
            f"CrossEntropy learns from labels, and none of the {len(labels)} training data has "
            "one. Choose data with labels, set `pseudo: true` beside the callback "
            "eblvm.clustering.GeometricClustering, or drop the regularizer."
        )
