"""What the trainer costs: a step of BiDVL in the plane against its equations in a plain loop.

Both train the networks of `toy/bidvl_8gaussians`. Run
`OMP_NUM_THREADS=1 python -m eblvm.benchmarks.speed.bidvl`; it prints milliseconds of processor time
per step, the median over repeats.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Trainer

from eblvm.training import build


def plain(model: Any, data: Any, num_steps: int) -> float:
    """Seconds a step of the equations alone, transcribed."""
    energy, latent = model.energy, model.latent
    encoder, decoder = latent.posterior.encoder, latent.likelihood.decoder
    players = [*encoder.parameters(), *decoder.parameters()]
    upper = torch.optim.Adam(energy.parameters(), 1e-4, betas=(0.0, 0.9))
    lower = torch.optim.Adam(players, 3e-4, betas=(0.0, 0.9))
    batches = [x for x, _ in data.batches("train")]
    begin = time.process_time()
    for step in range(num_steps):
        x = batches[step % len(batches)]
        h = torch.randn(len(x), 2)
        with torch.no_grad():
            sample = decoder(h)
        loss = energy(x).mean() - energy(sample).mean()
        upper.zero_grad()
        loss.backward()
        upper.step()
        mean, log_variance = encoder(x).chunk(2, 1)
        again = decoder(mean + (0.5 * log_variance).exp() * torch.randn_like(mean))
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum(1)
        bound = (again - x).square().sum(1) + kl
        energy.requires_grad_(False)
        encoder.requires_grad_(False)
        sample = decoder(h)
        cycle = (encoder(sample)[:, :2] - h).square().sum(1) / 2
        loss = (energy(sample) + cycle + 0.05 * bound).mean()
        energy.requires_grad_(True)
        encoder.requires_grad_(True)
        lower.zero_grad()
        loss.backward()
        lower.step()
    return (time.process_time() - begin) / num_steps


def ours(model: Any, data: Any, num_steps: int) -> float:
    """Seconds a step of the learner under a trainer, its start left out."""

    def fit(steps: int) -> float:
        trainer = Trainer(
            max_steps=steps,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        begin = time.process_time()
        trainer.fit(model, data)
        return time.process_time() - begin

    return (fit(num_steps + 10) - fit(10)) / num_steps


def main() -> None:
    """Print both costs and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    contenders: dict[str, Callable[[Any, Any, int], float]] = {"plain": plain, "eblvm": ours}
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.repeats):
        for name, measure in contenders.items():
            model, data = build("toy/bidvl_8gaussians")
            data.setup("fit")
            seconds[name].append(measure(model, data, options.steps))
    medians = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    for name, value in medians.items():
        print(f"{name:6s} {value:6.2f} ms per step")
    print(f"ratio  {medians['eblvm'] / medians['plain']:6.2f}")


if __name__ == "__main__":
    main()
