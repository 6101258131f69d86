r"""How much a symbol says about a latent."""

import torch
from torch import Tensor

__all__ = ["mutual_information"]


def mutual_information(logits: Tensor) -> Tensor:
    r"""The batch's estimate of I(z; y) = H(y) − H(y|z), in nats.

    .. math:: I = -\sum_y \bar p_y \log \bar p_y
        + \frac1B \sum_b \sum_y p_{by} \log p_{by}, \qquad \bar p = \frac1B \sum_b p_b

    At most min(log K, log B): give the batch size beside the figure.

    References:
        Latent Space Energy-Based Model of Symbol-Vector Coupling for Text Generation and
        Classification (Pang and Wu, 2021).

    Arguments:
        logits: With shape `(B, K)`; p_b is their softmax.

    Returns:
        A scalar. Unlike other objectives it belongs to the batch, not to its rows.
    """
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    mean = p.mean(0)
    tiny = torch.finfo(mean.dtype).tiny  # a symbol that nobody has: 0 log 0 = 0
    return -(mean * mean.clamp_min(tiny).log()).sum() + (p * log_p).sum(1).mean()
