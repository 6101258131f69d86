"""`eblvm diagnose`: do the chains that a model was trained with reach what they claim to sample?

Training runs a sampler for a few steps and takes its end for a draw of exp(−E). Here the same
sampler, with its own step size, on the trained model's own energy and from its own start, first
runs those few steps (*short*) and then goes on; the second half of all steps (*long*) tells where
the chain settles, if it does. R̂ and effective sample sizes of both, and the energy where the short
chain stops against the long run's mean, say whether training saw samples or a transient.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from eblvm.checkpoint import load
from eblvm.cli import UserError, print_table
from eblvm.samplers import Chain, ChainSetup, Kernel, ParallelTempering, diagnostics
from eblvm.samplers.chain import energies_along
from eblvm.samplers.plots import plot_chain

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Diagnosable", "Run", "continued", "diagnose", "figures", "reading", "run_chains"]

MOST_COORDINATES = 256
"""Of larger events as many coordinates, evenly spaced, are looked at."""

TRAPPED = 1.1
"""An R̂ of the long run above which its mean is no reference: chains sit in different places."""

ROWS = {
    "split R-hat, worst": "rhat_max",
    "bulk ESS, worst": "ess_bulk_min",
    "tail ESS, worst": "ess_tail_min",
    "acceptance": "acceptance",
    "exchange rate, worst": "exchange_min",
    "energy autocorrelation time (draws)": "energy_autocorrelation_time",
    "mean energy, first tenth": "energy_first_tenth",
    "mean energy, last tenth": "energy_last_tenth",
    "mean energy": "energy_mean",
    "displacement from the start": "displacement",
    "diverged chains": "num_diverged",
}
"""The printed rows, and their names in the JSON file."""


@runtime_checkable
class Diagnosable(Protocol):
    """A learner that can say which chains it runs in training."""

    def chains(self, generator: torch.Generator | None = None) -> dict[str, ChainSetup]:
        """Name to chain; empty if the learner runs none."""
        ...


@dataclass(frozen=True, eq=False)
class Run:
    """One run of a chain group, on the CPU.

    Arguments:
        start: Where the chains began, with shape `(C, *event)`.
        short: The steps of training.
        rest: All later steps; acceptance and exchange rates are theirs.
        long: The later part of `rest`: the second half of all steps.
        short_end: Energies where `short` ends, `(C,)`; of the start if training takes no step.
        steps_per_draw: Steps between two draws.
        exchange: Exchange rates `(K − 1,)` of short and rest; empty without tempering.
    """

    start: Tensor
    short: Chain
    rest: Chain
    long: Chain
    short_end: Tensor
    steps_per_draw: int
    exchange: tuple[Tensor, Tensor]

    @property
    def whole(self) -> Chain:
        """Short and rest in one."""
        x, parts = self.rest.x, (self.short, self.rest)
        trajectory = torch.cat([part.trajectory for part in parts])
        return Chain(x, trajectory, torch.cat([part.energies for part in parts]))


def continued(sampler: Kernel | ParallelTempering, num_draws: int) -> Kernel | ParallelTempering:
    """The sampler for another number of steps (of rounds, if tempered).

    Step sizes and noise scales that change from step to step stay at their last.
    """
    if isinstance(sampler, ParallelTempering):
        return replace(sampler, num_swaps=num_draws)
    settings: Any = sampler
    values = {field.name: getattr(sampler, field.name) for field in fields(settings)}
    annealed = ("step_size", "noise_scale")
    last = {k: v[-1] for k, v in values.items() if k in annealed and isinstance(v, Sequence) and v}
    return replace(settings, num_steps=num_draws, **last)


def _run(
    sampler: Kernel | ParallelTempering, setup: ChainSetup, x: Tensor, generator: torch.Generator
) -> tuple[Chain, Tensor]:
    chain = sampler.run(setup.energy, x, generator)
    exchange = x.new_empty(0) if chain.exchange is None else chain.exchange
    acceptance = None if chain.acceptance is None else chain.acceptance.cpu()
    kept = Chain(chain.x, chain.trajectory.cpu(), chain.energies.cpu(), acceptance)
    return kept, exchange.cpu()


def run_chains(
    setup: ChainSetup, num_chains: int, num_steps: int, generator: torch.Generator
) -> Run:
    """Run a chain group: the steps of training first, then on to `num_steps`.

    Raises:
        UserError: If `num_steps` is less than twice the steps of training, or gives under 8 draws.
    """
    sampler = setup.sampler
    if isinstance(sampler, ParallelTempering):
        per_draw, own = max(1, sampler.kernel.num_steps), sampler.num_swaps
    else:
        per_draw, own = 1, sampler.num_steps
    total = num_steps // per_draw
    if total < max(8, 2 * own):
        raise UserError(
            f"--num-steps is {num_steps}, but the chain takes {own * per_draw} steps in training; "
            f"expected at least {max(8, 2 * own) * per_draw}, to compare the two."
        )
    start = setup.start(num_chains, generator)
    short, exchange = _run(sampler, setup, start, generator)
    rest, later = _run(continued(sampler, total - own), setup, short.x, generator)
    warm_up = total // 2 - own
    long = replace(rest, trajectory=rest.trajectory[warm_up:], energies=rest.energies[warm_up:])
    end = energies_along(setup.energy, short.x[None])[0].cpu()
    return Run(start.cpu(), short, rest, long, end, per_draw, (exchange, later))


def figures(chain: Chain, start: Tensor, exchange: Tensor) -> dict[str, Any]:
    """What `diagnostics.report` says of the chains that stayed finite, and more.

    Arguments:
        chain: Draws `(N, C, *event)`.
        start: Where the chains began, with shape `(C, *event)`.
        exchange: Exchange rates `(K − 1,)`, or none.

    Returns:
        The report, over at most `MOST_COORDINATES` coordinates; with `energy_first_tenth` and
        `energy_last_tenth`, `displacement` (mean distance of the last draws from the start),
        `exchange_min` and `num_diverged`. Little more than the latter of fewer than 4 draws.
    """
    finite = _finite(chain)
    draws, energies = chain.trajectory[:, finite].flatten(2), chain.energies[:, finite]
    result: dict[str, Any] = {"num_draws": len(draws), "num_diverged": int((~finite).sum())}
    if finite.any() and len(draws):
        moved = draws[-1] - start[finite].flatten(1)
        tenth = max(1, len(energies) // 10)
        result["displacement"] = float(moved.square().sum(-1).sqrt().mean())
        result["energy_first_tenth"] = float(energies[:tenth].mean())
        result["energy_last_tenth"] = float(energies[-tenth:].mean())
    if finite.any() and len(draws) >= 4:
        rates = None if chain.acceptance is None else chain.acceptance[finite]
        few = draws[..., coordinates(draws.shape[-1])]
        result |= diagnostics.report(Chain(few[-1], few, energies, rates))
    if len(exchange):
        result["exchange_min"] = float(exchange.min())
    return result


def coordinates(num: int) -> Tensor:
    """Indices of all `num` coordinates, or of `MOST_COORDINATES` evenly spaced ones."""
    return torch.linspace(0, num - 1, min(num, MOST_COORDINATES)).round().long()


def _finite(chain: Chain) -> Tensor:
    """Which chains never left the finite numbers, `(C,)`."""
    return chain.energies.isfinite().all(0) & chain.trajectory.flatten(2).isfinite().all(-1).all(0)


def summary(run: Run) -> dict[str, Any]:
    """The figures of both stretches, what they say of each other, and a sentence."""
    short = figures(run.short, run.start, run.exchange[0])
    long = figures(run.long, run.start, run.exchange[1])
    draws = len(run.whole.energies)
    result: dict[str, Any] = {
        "steps_per_draw": run.steps_per_draw,
        "training_steps": len(run.short.energies) * run.steps_per_draw,
        "long_from": (draws - len(run.long.energies)) * run.steps_per_draw + 1,
        "num_steps": draws * run.steps_per_draw,
        "short": short,
        "long": long,
    }
    finite = _finite(run.whole)
    if finite.any():
        ends, energies = run.short_end[finite].double(), run.long.energies[:, finite].double()
        # Two independent errors: of the mean over ends, and of the long run's mean.
        variance = ends.var() / len(ends) + energies.var() / diagnostics.ess_mean(energies)
        result["energy_gap"] = float(ends.mean() - energies.mean())
        result["energy_gap_error"] = float(variance.sqrt())
    return result | {"reading": reading(result)}


def reading(result: Mapping[str, Any]) -> str:
    """One sentence on the figures of a chain group."""
    short, long = result["short"], result["long"]
    if long["num_diverged"]:
        when = "already in training's steps" if short["num_diverged"] else "after training's steps"
        return (
            f"{long['num_diverged']} chains diverged, {when}: the step size is too large for this "
            "energy, or the energy has no minimum."
        )
    r, ess = long["rhat_max"], min(long["ess_bulk_min"], long["ess_tail_min"])
    if not (r <= TRAPPED and ess > 400):
        return (
            f"R-hat {r:.2f} and ESS {ess:.0f} of the long run, where below 1.01 and above 400 are "
            "wanted: even the long chain has not mixed, and the short one cannot have; give "
            "--num-steps more, and if that does not help the sampler a larger step or tempering."
        )
    long_run = f"the long run's mean energy ({3 * result['energy_gap_error']:.2g} nats either way)"
    if not long["converged"]:  # R̂² − 1 falls as 1 / steps, once chains wander everywhere
        steps = result["num_steps"] * (max(r, long["energy_rhat"]) ** 2 - 1) / (1.01**2 - 1)
        long_run += f", whose R-hat {r:.3f} would need about {float(f'{steps:.1g}'):.0f} steps"
    gap, error = result["energy_gap"], result["energy_gap_error"]
    if not abs(gap) <= 3 * error:
        side = "above" if gap > 0 else "below"
        return (
            f"The short chain has not converged: it stops {abs(gap):.3g} nats {side} {long_run}; "
            "training sees a transient where it counts on samples."
        )
    own = short.get("rhat_max", math.nan)
    if own > 1.01:
        return (
            f"R-hat {own:.2f} above 1.01: the short chain has not mixed on its own; yet it stops "
            f"at {long_run}, which is what training needs."
        )
    return f"The short chain stops at {long_run}: no sign that it is too short."


def table(name: str, content: Mapping[str, Any]) -> "Table":
    """The printed figures of a chain group."""
    from rich.table import Table

    own, first, last = content["training_steps"], content["long_from"], content["num_steps"]
    short = f"short: steps 1–{own}, as in training" if own else "short: training takes no step"
    heads = (short, f"long: steps {first}–{last}")
    result = Table(name, *heads, box=None, header_style="bold")
    for row, key in ROWS.items():
        values = [content[stretch].get(key) for stretch in ("short", "long")]
        if any(value is not None for value in values):
            result.add_row(row, *("–" if v is None else f"{v:.4g}" for v in values))
    return result


def _storable(value: Any) -> Any:
    """For JSON, which knows neither NaN nor infinity: null."""
    if isinstance(value, Mapping):
        return {k: _storable(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw_run(run: Run, path: Path) -> None:
    """Write the traces, and the autocorrelations of the long stretch, as a picture."""
    whole, finite = run.whole, _finite(run.whole)
    if not finite.any():
        return
    kept = Chain(whole.x, whole.trajectory[:, finite], whole.energies[:, finite])
    figure = plot_chain(kept, warm_up=len(kept.energies) - len(run.long.energies))
    for trace in figure.axes[::2]:
        trace.axvspan(0, len(run.short.energies), color="orange", alpha=0.4)
    figure.axes[0].set_title("orange: steps of training; dashed: the long stretch begins")
    figure.savefig(path, dpi=120)


def diagnose(
    ckpt: str, num_chains: int, num_steps: int, out: str | None, seed: int, device: str | None
) -> dict[str, Any]:
    """Diagnose the chains of a checkpoint's model; print the figures, and write them and plots.

    Arguments:
        ckpt: The checkpoint.
        num_chains: Chains side by side.
        num_steps: Steps of each, those of training first.
        out: Folder for `diagnose.json` and `diagnose_<chain>.png`; that of the run if None.
        seed: Of the starts and of the noise.
        device: Where to run; a GPU if there is one and None is given.

    Returns:
        What `diagnose.json` holds.

    Raises:
        UserError: If the model runs no chain, or the steps are too few to compare.
    """
    model = load(ckpt, device)
    generator = torch.Generator(model.device).manual_seed(seed)
    setups = model.chains(generator) if isinstance(model, Diagnosable) else {}
    if not setups:
        raise UserError(
            f"the {type(model).__name__} of {ckpt} runs no chain, so there is none to diagnose; "
            "a model with an EnergyPrior or a LangevinPosterior has one."
        )
    folder = _folder(Path(ckpt), out)
    groups: dict[str, Any] = {}
    for name, setup in setups.items():
        run = run_chains(setup, num_chains, num_steps, generator)
        groups[name] = _storable({"sampler": repr(setup.sampler), **summary(run)})
        draw_run(run, folder / f"diagnose_{name}.png")
        print(f"\n{setup.sampler}, {num_chains} chains")
        print_table(table(name, groups[name]))
        print(groups[name]["reading"])
    result = {"checkpoint": ckpt, "seed": seed, "num_chains": num_chains, "chains": groups}
    file = folder / "diagnose.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"\nfigures and plots: {file}, {folder}/diagnose_*.png")
    return result


def _folder(ckpt: Path, out: str | None) -> Path:
    """Where to write: `out`, made if need be, or the run's folder.

    Raises:
        UserError: If nothing can be written there.
    """
    run = ckpt.parent.parent if ckpt.parent.name == "checkpoints" else ckpt.parent
    folder = run if out is None else Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot make the folder {folder} ({error}); choose another --out."
        ) from error
    if not os.access(folder, os.W_OK):
        raise UserError(f"cannot write to the folder {folder}; choose another --out.")
    return folder
