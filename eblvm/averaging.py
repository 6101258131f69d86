"""Running averages of weights, as models that can be used."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

__all__ = ["RunningAverage", "estimate_statistics"]


class RunningAverage(AveragedModel):
    r"""An exponential moving average of a module's weights, :math:`a \leftarrow d\,a + (1 - d)\,w`.

    Running means and variances of batch normalization are averaged as the weights are, for those
    of the latest weights do not fit averaged ones; while weights move fast averages do not, either,
    and `estimate_statistics` does better. All other buffers are the module's latest: the vectors of
    spectral norms, whose mean has not length 1, the states of replay buffers, whose mean is no
    state, and counts.

    Arguments:
        module: Whose weights.
        decay: d.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module, multi_avg_fn=get_ema_multi_avg_fn(decay))
        self.decay = decay

    def update_parameters(self, model: nn.Module) -> None:
        """Take in a step: the first one is copied."""
        own = statistics(self.module)
        past = None if self.n_averaged == 0 else [value.clone() for value in own]
        super().update_parameters(model)
        if past and own:
            torch._foreach_lerp_(own, past, self.decay)


def statistics(module: nn.Module) -> list[Tensor]:
    """The running means and variances within a module."""
    names = ("running_mean", "running_var")
    return [b for n, b in module.named_buffers() if n.rpartition(".")[2] in names]


@torch.no_grad()
def estimate_statistics(learner: Any, passes: Iterable[tuple[Any, torch.Generator]]) -> None:
    """Running means and variances anew: plain means over training passes.

    Nothing else of the learner changes, nor does the global source of randomness.

    Arguments:
        learner: Its `terms(batch, generator)` are what it computes in training.
        passes: Batches, each with a source of noise.

    References:
        Averaging Weights Leads to Wider Optima and Better Generalization (Izmailov et al., 2018),
        Sec. 3.2.
    """
    twin = copy.deepcopy(learner).train()
    layers = {n: m for n, m in twin.named_modules() if hasattr(m, "reset_running_stats")}
    for layer in layers.values():
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean
    with torch.random.fork_rng():
        for batch, generator in passes:
            twin.terms(batch, generator)
    for name, layer in layers.items():
        if layer.track_running_stats and layer.num_batches_tracked > 0:
            own = learner.get_submodule(name)
            own.running_mean.copy_(layer.running_mean)
            own.running_var.copy_(layer.running_var)
