"""What a training step of BiDVL costs, against its equations transcribed into a plain loop.

Both train the networks of a recipe, from equal weights, on its batches. Run
`OMP_NUM_THREADS=1 python -m eblvm.benchmarks.speed.bidvl`; it prints milliseconds per step and how
many times faster the learner is, all of the trainer included: medians over rounds in which both
take their steps, and the quartiles of the rounds' ratios. Time is that of the processor, or with
`--device cuda` that of the clock on the wall, the device having done what it was asked. Images are
drawn at random, not read; the transcription has its batches on the device before.

The transcription is the released code's order of things (Kan et al., 2022): the sample of the upper
level is made with a graph and detached, and made again for the lower level; the energy is called
three times, its parameters gather gradients in the lower level that the next step throws away, and
only the encoder is frozen, for the cycle. Its networks are PyTorch's plain layers in the usual
layout, whatever the recipe says of channels last. Its test for NaN is left out; the learner's is
in. Both take the same steps but for what layers do on every pass: batch normalization averages
samples twice a step there and once here, and spectral norms iterate three times there and twice.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn

from eblvm.training import build

RECIPES = ("toy/bidvl_8gaussians", "image/bidvl_digits", "image/bidvl_fashion_mnist")
WARM_UP = 2
"""Steps of each round that are not counted."""


def clock(device: torch.device) -> float:
    """Seconds of processor time; of the wall clock for a device, once it is done."""
    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def transcribed(model: Any, batches: Sequence[torch.Tensor], num_steps: int) -> float:
    """Seconds a step of the equations alone."""
    energy, encoder = model.energy, model.latent.posterior.encoder
    generator, latent_dim = model.latent.likelihood.decoder, model.latent.prior.latent_dim
    others = [*encoder.parameters(), *generator.parameters()]
    upper = torch.optim.Adam(energy.parameters(), 1e-4, betas=(0.0, 0.9))
    lower = torch.optim.Adam(others, 3e-4, betas=(0.0, 0.9))
    weight = model.lower.forward
    begin, device = 0.0, batches[0].device
    for step in range(WARM_UP + num_steps):
        if step == WARM_UP:
            begin = clock(device)
        v = batches[step % len(batches)]
        z = torch.randn(len(v), latent_dim, device=device)
        sample = generator(z)
        loss = energy(v).mean() - energy(sample.detach()).mean()
        upper.zero_grad()
        loss.backward()
        upper.step()
        mean, log_variance = encoder(v).chunk(2, 1)
        again = generator(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
        bound = (again - v).square().flatten(1).sum(1) + kl
        sample = generator(z)
        loss = energy(sample).mean() + weight * bound.mean()
        for p in encoder.parameters():
            p.requires_grad_(False)
        found = encoder(sample).chunk(2, 1)[0]
        loss = loss + (found - z).square().sum(1).mean() / latent_dim
        for p in encoder.parameters():
            p.requires_grad_(True)
        lower.zero_grad()
        loss.backward()
        lower.step()
    return (clock(device) - begin) / num_steps


class Stopwatch(Callback):
    """The clock at the end of the warm-up and at the last batch."""

    def __init__(self) -> None:
        self.begin = self.end = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if trainer.global_step == WARM_UP:
            self.begin = clock(pl_module.device)
        if trainer.global_step == trainer.max_steps:
            self.end = clock(pl_module.device)


def trained(
    model: Any, data: Any, num_steps: int, precision: Any = "32-true", device: str = "cpu"
) -> float:
    """Seconds a step of the learner under a trainer that logs nowhere."""
    watch = Stopwatch()
    trainer = Trainer(
        max_steps=WARM_UP + num_steps,
        accelerator=device,
        devices=1,
        precision=precision,
        logger=False,
        callbacks=[watch],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    trainer.fit(model, data)
    return (watch.end - watch.begin) / num_steps


def plain(recipe: str, *overrides: str) -> Any:
    """The recipe's model of PyTorch's own layers, in the usual layout."""
    with patch("eblvm.models.networks.critic.WholeConv2d", nn.Conv2d):
        model: Any = build(recipe, *overrides, "--model.init_args.channels_last=false")[0]
    return model


def compare(
    recipe: str, num_steps: int, rounds: int, precision: str = "32-true", device: str = "cpu"
) -> str:
    """A line of the table."""
    synthetic = [] if recipe.startswith("toy/") else ["--data.init_args.dataset=Synthetic"]
    seconds: list[list[float]] = [[], []]
    data: Any
    model, data = build(recipe, *synthetic)
    reference = plain(recipe, *synthetic)
    reference.load_state_dict(model.state_dict())
    data.setup("fit")
    batches = [x.to(device) for x, _ in data.batches("train")][:50]
    for _ in range(rounds):
        seconds[0].append(transcribed(reference.to(device), batches, num_steps))
        seconds[1].append(trained(model, data, num_steps, precision, device))
    ratios = [slow / fast for slow, fast in zip(*seconds, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    slow, fast = (1e3 * statistics.median(values) for values in seconds)
    return f"| `{recipe}` | {slow:.1f} | {fast:.1f} | {middle:.2f} ({low:.2f}–{high:.2f}) |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("recipes", nargs="*", default=RECIPES)
    parser.add_argument("--steps", type=int, default=100, help="per round; of images a tenth")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="32-true", help="of the learner alone")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    print("| recipe | transcription, ms | learner, ms | times faster (quartiles) |")
    print("|---|---|---|---|")
    for recipe in options.recipes:
        steps = options.steps if recipe.startswith("toy/") else max(1, options.steps // 10)
        line = compare(recipe, steps, options.rounds, options.precision, options.device)
        print(line, flush=True)


if __name__ == "__main__":
    main()
