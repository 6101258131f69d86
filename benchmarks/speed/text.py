"""A training step of LDEBM and of SVEBM-IB on Penn Treebank: what it costs, and where.

Each is measured against a plain transcription of the published algorithm, on the same weights and
with the same noise. The transcription keeps what the released code does and what costs time: every
position of padded sentences is encoded and projected, the whole log-softmax is in memory, the two
chains of LDEBM run one after the other, each evaluation normalizes all weights anew, and gradients
in chains come from autograd. Where sentences have one length and the normalization has settled,
losses and gradients agree to rounding; `tests/test_speed_text.py` holds both to it.

Figures are processor time on one thread, of steps that alternate: median, smallest and largest.
With `--device cuda` they are of the clock, and each part is over when the device is done with it.

Run: OMP_NUM_THREADS=1 python -m eblvm.benchmarks.speed.text
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eblvm.energies import SymbolVectorEnergy, SymbolVectorTimeEnergy
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import CategoricalLikelihood
from eblvm.models import LatentEBM
from eblvm.models.networks import MLP, ResidualTimeNet, SentenceDecoder, SentenceEncoder
from eblvm.posteriors import AmortizedPosterior
from eblvm.priors import DiffusionEnergyPrior, EnergyPrior, Prior
from eblvm.regularizers import CrossEntropy, InformationBottleneck
from eblvm.samplers import Langevin
from eblvm.schedules import RecoverySchedule


@dataclass(frozen=True)
class Sizes:
    """Those of Penn Treebank, as published.

    Arguments:
        vocab: Words.
        length: Positions of a padded sentence.
        width: Of embeddings and recurrent layers.
        latent_dim: D.
        num_symbols: K.
        energy_width: Of the diffusion prior's network.
        num_blocks: Of the same.
        num_steps: Of its chains.
        dropout: Of the decoder.
    """

    vocab: int = 10_001
    length: int = 40
    width: int = 512
    latent_dim: int = 40
    num_symbols: int = 20
    energy_width: int = 200
    num_blocks: int = 12
    num_steps: int = 50
    dropout: float = 0.3


BATCH = {"ldebm": 128, "svebm_ib": 30}
KL_WEIGHT = {"ldebm": 0.1, "svebm_ib": 0.5}
INFORMATION = {"ldebm": 0.05, "svebm_ib": 50.0}


def learner(method: str, sizes: Sizes) -> LatentEBM:
    """The model of a method with the published weights and rates."""
    dim, num = sizes.latent_dim, sizes.num_symbols
    prior: Prior
    regularizers: list[Any] = [InformationBottleneck(INFORMATION[method])]
    if method == "ldebm":
        net = ResidualTimeNet(dim, num, 6, sizes.energy_width, sizes.num_blocks)
        schedule = RecoverySchedule(num_timesteps=6)
        tilt = SymbolVectorTimeEnergy(net)
        prior = DiffusionEnergyPrior(dim, tilt, schedule, sizes.num_steps, free_bits=1.0)
        regularizers.append(CrossEntropy(0.05, pseudo=True))
    else:
        net_ = MLP(dim, [sizes.energy_width] * 2, num)
        sampler = Langevin(num_steps=40, step_size=0.5)
        prior = EnergyPrior(dim, SymbolVectorEnergy(net_), sampler, free_bits=1.0)
    encoder = SentenceEncoder(sizes.vocab, 2 * dim, sizes.width, sizes.width, leaky=True)
    decoder = SentenceDecoder(sizes.vocab, dim, sizes.width, sizes.width, dropout=sizes.dropout)
    likelihood = CategoricalLikelihood(decoder, sizes.length)
    return LatentEBM(
        LatentVariableModel(prior, AmortizedPosterior(encoder), likelihood),
        {"prior": 1e-4, "posterior": 1e-3, "likelihood": 1e-3},
        kl_weight=KL_WEIGHT[method],
        regularizers=regularizers,
        clip_norms={"prior": 10.0, "posterior+likelihood": 0.5},
    )


def loss_of(model: LatentEBM, batch: tuple[Tensor, Tensor], seed: int) -> Tensor:
    """The loss of a step by the library; as `LatentEBM.step`, without the log."""
    generator = torch.Generator(batch[0].device).manual_seed(seed)
    inference = model.latent.infer(batch[0], generator)
    terms = model.latent.loss(batch[0], generator, inference)
    loss = terms["reconstruction"].mean() + model.kl_weight(0) * terms["prior"].mean()
    for regularizer in model.regularizers:
        loss = loss + regularizer.weight * regularizer(model.latent, batch, inference, generator)
    return loss


# The transcription


def plain_loss(model: LatentEBM, batch: tuple[Tensor, Tensor], seed: int) -> Tensor:
    """The same loss, written out from the published algorithm."""
    generator = torch.Generator(batch[0].device).manual_seed(seed)
    x, label = batch
    latent: Any = model.latent
    encoder, decoder = latent.posterior.encoder, latent.likelihood.decoder
    _, last = encoder.rnn(encoder.embedding(x))  # padding is read
    states = F.leaky_relu(torch.cat([last[0], last[1]], 1), 0.01)
    mean, log_variance = encoder.heads(states).chunk(2, 1)
    z = mean + (0.5 * log_variance).exp() * draw(mean, generator)
    words = F.dropout(decoder.embedding(x[:, :-1]), decoder.dropout.p, decoder.training)
    inputs = torch.cat([words, z[:, None].expand(-1, words.shape[1], -1)], 2)
    hidden, _ = decoder.rnn(inputs, decoder.first(z)[None])
    hidden = F.dropout(hidden, decoder.dropout.p, decoder.training)
    log_p = F.log_softmax(hidden @ decoder.embedding.weight.T, 2)
    nll = F.nll_loss(log_p.flatten(0, 1), x[:, 1:].flatten(), ignore_index=0, reduction="sum")
    if isinstance(latent.prior, DiffusionEnergyPrior):
        prior = diffusion_terms(latent.prior, z, log_variance, generator)
        net: Any = latent.prior.tilt.net
        schedule = latent.prior.schedule
        level = torch.zeros(len(z), dtype=torch.long, device=z.device)
        z_0 = schedule.a_bar[0] * z + schedule.sigma_bar[0] * draw(z, generator)
        symbols = net(schedule.a[1] * z_0, level)
    else:
        prior = symbol_terms(latent.prior, z, mean, log_variance, generator)
        symbols = latent.prior.tilt.net(z)

    loss = nll / len(x) + model.kl_weight(0) * prior
    p = symbols.softmax(1)
    share = p.mean(0)
    information = -(share * share.log()).sum() + (p * p.log()).sum(1).mean()
    loss = loss - model.regularizers[0].weight * information
    for regularizer in model.regularizers[1:]:
        loss = loss + regularizer.weight * F.cross_entropy(symbols, label)
    return loss


def draw(x: Tensor, generator: torch.Generator) -> Tensor:
    """Unit Gaussian noise like `x`."""
    return torch.randn(x.shape, dtype=x.dtype, device=x.device, generator=generator)


def diffusion_terms(
    prior: Any, z: Tensor, log_variance: Tensor, generator: torch.Generator
) -> Tensor:
    """Entropy, base and the contrasts of two levels, with two chains one after the other."""
    a, sigma = prior.schedule.a, prior.schedule.sigma
    a_bar, sigma_bar = prior.schedule.a_bar, prior.schedule.sigma_bar
    num, last = len(z), len(a) - 2
    entropy = -0.5 * (1 + log_variance)
    entropy = (entropy * (entropy > 1)).sum(1)

    def pair(t: Tensor) -> tuple[Tensor, Tensor]:
        z_t = a_bar[t, None] * z + sigma_bar[t, None] * draw(z, generator)
        return z_t, a[t + 1, None] * z_t + sigma[t + 1, None] * draw(z, generator)

    final = torch.full((num,), last, device=z.device)
    top = pair(final)
    t = torch.randint(last, (num,), generator=generator, device=z.device)
    low = pair(t)
    noise = draw(z.new_empty(prior.num_steps, 2 * num, z.shape[1]), generator)
    total = entropy + 0.5 * sigma[1] / sigma[last + 1] * top[0].square().sum(1)
    for (z_t, z_next), level, eps in (
        (low, t, noise[:, :num]),
        (top, final, noise[:, num:]),
    ):
        recovery = level < last
        scale = torch.where(recovery, a[level + 1], torch.ones_like(a[level]))[:, None]
        s2 = (2e-3 * sigma[level + 1] ** 2 * sigma_bar[level] / sigma_bar[0])[:, None]
        y = z_next.detach()
        center = y * recovery[:, None]
        for step in range(prior.num_steps):
            y.requires_grad_()
            energy = prior.tilt.net(y, level).logsumexp(1)
            tie = (y - center).square().sum(1) / (2 * sigma[level + 1] ** 2)
            (g,) = torch.autograd.grad((energy / s2[:, 0] - tie).sum(), y)
            y = (y + 0.5 * s2 * g + s2.sqrt() * eps[step]).detach()
        weight = sigma[1] / sigma[level + 1]
        negative = prior.tilt.net(y, level).logsumexp(1)
        positive = prior.tilt.net(scale * z_t, level).logsumexp(1)
        total = total + weight * (negative - positive)
    return total.mean()


def symbol_terms(
    prior: Any, z: Tensor, mean: Tensor, log_variance: Tensor, generator: torch.Generator
) -> Tensor:
    """The masked divergence from N(0, I), and the contrast with a chain from N(0, I)."""
    kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp())
    kl = (kl * (kl > 1)).sum(1)
    y, s = draw(z, generator), prior.sampler.step_size
    noise = draw(y.new_empty(prior.sampler.num_steps, *y.shape), generator)
    for eps in noise:
        y.requires_grad_()
        density = prior.tilt.net(y).logsumexp(1) - 0.5 * y.square().sum(1)
        (g,) = torch.autograd.grad(density.sum(), y)
        y = (y + 0.5 * s**2 * g + s * eps).detach()
    f = prior.tilt.net(torch.cat([z, y])).logsumexp(1)
    return (kl - f[: len(z)] + f[len(z) :]).mean()


# Measuring


def sentences(num: int, sizes: Sizes, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Padded sentences, 22 words on average as in Penn Treebank, and pseudo-labels."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, sizes.length + 1, (num, 1), generator=generator)
    lengths[0] = sizes.length
    x = torch.randint(4, sizes.vocab, (num, sizes.length), generator=generator)
    x = x * (torch.arange(sizes.length) < lengths)
    return x, torch.randint(sizes.num_symbols, (num,), generator=generator)


def seconds(device: torch.device) -> float:
    """Processor time; on a GPU that of the clock, once the device is done."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


class Clock:
    """Time by name (see `seconds`); a part that is within another is not counted twice."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.spent: dict[str, float] = {}

    @contextmanager
    def part(self, name: str, within: str | None = None) -> Iterator[None]:
        """Add what the block takes to `name`, and take it from `within`."""
        start = seconds(self.device)
        yield
        spent = seconds(self.device) - start
        self.spent[name] = self.spent.get(name, 0) + spent
        if within is not None:
            self.spent[within] = self.spent.get(within, 0) - spent

    def wrap(self, owner: Any, method: str, name: str, within: str | None = None) -> None:
        """Time every call of a method of an object."""
        plain = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self.part(name, within):
                return plain(*args, **kwargs)

        object.__setattr__(owner, method, timed)


def shares(model: LatentEBM, batch: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Seconds of a step of the library (see `seconds`), by part."""
    clock, latent = Clock(batch[0].device), model.latent
    clock.wrap(latent.posterior, "proposal", "encoder")
    clock.wrap(latent.likelihood, "log_prob", "decoder")
    chain = "_run" if isinstance(latent.prior, DiffusionEnergyPrior) else "_negatives"
    clock.wrap(latent.prior, chain, "chains")
    optimizer = model.configure_optimizers()["optimizer"]
    with clock.part("all"):
        loss = loss_of(model, batch, 0)
        with clock.part("backward"):
            loss.backward()
        with clock.part("clipping and Adam"):
            model.configure_gradient_clipping(optimizer)
            optimizer.step()
    whole = clock.spent.pop("all")
    return {**clock.spent, "other": whole - sum(clock.spent.values())}


def measure(method: str, sizes: Sizes, repeats: int, device: torch.device) -> str:
    """Time of steps by the library and by the transcription, as lines of text."""
    torch.manual_seed(0)
    model = learner(method, sizes).train().to(device)
    x, label = sentences(BATCH[method], sizes)
    batch = (x.to(device), label.to(device))
    spent: dict[str, list[float]] = {"library": [], "transcription": []}
    for repeat in range(repeats + 1):
        for name, function in (("library", loss_of), ("transcription", plain_loss)):
            start = seconds(device)
            function(model, batch, repeat).backward()
            if repeat:  # the first warms up
                spent[name].append(1e3 * (seconds(device) - start))
            model.zero_grad()
    lines = [f"{method}, batches of {BATCH[method]}"]
    for name, values in spent.items():
        spread = f"({min(values):.0f} to {max(values):.0f})"
        lines.append(f"  {name:14} {median(values):7.0f} ms {spread}")
    ratio = median(spent["transcription"]) / median(spent["library"])
    lines.append(f"  {ratio:.2f} times as fast")
    part = shares(model, batch)
    parts = [f"{name} {100 * s / sum(part.values()):.0f} %" for name, s in part.items()]
    return "\n".join([*lines, "  of a step with its update: " + ", ".join(parts)])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--methods", nargs="+", choices=list(BATCH), default=list(BATCH))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", type=torch.device, default="cpu", help="cpu or cuda")
    options = parser.parse_args(arguments)
    if options.device.type == "cuda" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch sees no CUDA device")
    torch.set_num_threads(1)
    for method in options.methods:
        print(measure(method, Sizes(), options.repeats, options.device), flush=True)


if __name__ == "__main__":
    main()
