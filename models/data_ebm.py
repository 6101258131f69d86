"""The learner of energies of data: short-run, persistent, cooperative, amortized."""

import math
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from eblvm.conditions import Condition
from eblvm.energies import Energy, MaskedEnergy, TiltedEnergy
from eblvm.latent import Given
from eblvm.metrics.grid import Bounds, energy_log_prob
from eblvm.negatives import (
    AmortizedNegatives,
    Draw,
    GeneratedNegatives,
    Negatives,
    repeat_rows,
    with_steps,
)
from eblvm.objectives import contrastive_divergence
from eblvm.samplers import ChainSetup, Kernel, noise_like, score
from eblvm.signs import vital_signs

from .learner import Learner

__all__ = ["DataEBM"]


class DataEBM(Learner):
    r"""Trains an energy of data, :math:`p(x) \propto e^{-E(x)} r(x)`, against its `negatives`.

    One step draws negatives, lowers E on the data and raises it on them, and lets the starter of
    the chains learn their ends. Which method this is depends on `negatives` alone.

    The energy and the starter see each other through detached samples only, so one optimizer with
    two groups equals two optimizers.

    With a condition c the model is p(x|c), E is called `energy(x, c)`, and negatives are drawn for
    the conditions of the data, which removes p(c).

    Arguments:
        energy: E, or `(x, c) -> (B,)` for a conditional model.
        negatives: Where negatives come from.
        learning_rates: Rates of `energy` and, where they learn, of `negatives`.
        reference: The energy of r; none (flat) if None, and then the energy itself or the
            sampler's `bounds` must confine the chains.
        condition: From a batch to c; None for an unconditional model.
        optimizer: From parameter groups to an optimizer.
        scheduler: From the optimizer to a schedule that steps once an epoch.
        data_noise: Standard deviation of noise added to the data, in units of x. With visible
            noise in the chains (`noise_scale=1`) the energy otherwise learns to tell noise from
            data; take at least the chain's stationary noise.
        energy_penalty: Factor on E(x⁺)² + E(x⁻)², which bounds the energy's magnitude; 0 is none.
            At odds with a narrow reference, whose quadratic E must cancel.
        sampling_steps: Steps of refinement of what is drawn from the model, where the caller names
            no number; those of training if None. The released code takes 30, however many
            training took.
        channels_last: Whether filters, and with them all maps, lie in memory with channels last,
            which makes convolutions faster; results agree to rounding.

    References:
        Learning Energy-Based Model with Variational Auto-Encoder as Amortized Sampler (Xie, Zheng
        and Li, 2021), Algorithm 1; the paper writes f = −E. The released code adds no noise to its
        chains: that is `noise_scale=0` of the sampler, and the step is then gradient descent.
    """

    def __init__(
        self,
        energy: Energy,
        negatives: Negatives,
        learning_rates: dict[str, float],
        reference: Energy | None = None,
        condition: Condition | None = None,
        optimizer: OptimizerCallable = torch.optim.Adam,
        scheduler: LRSchedulerCallable | None = None,
        data_noise: float = 0.0,
        energy_penalty: float = 0.0,
        sampling_steps: int | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(optimizer, learning_rates, scheduler)
        for name, value in (("data_noise", data_noise), ("energy_penalty", energy_penalty)):
            if not value >= 0:
                raise ValueError(f"{name} is {value}; expected 0 or more.")
        if sampling_steps is not None and sampling_steps < 0:
            raise ValueError(f"sampling_steps is {sampling_steps}; expected 0 or more, or None.")
        self.save_recipe()
        self.energy = energy
        self.negatives = negatives
        self.reference = reference
        self.condition = condition
        self.data_noise = data_noise
        self.energy_penalty = energy_penalty
        self.sampling_steps = sampling_steps
        self._potential: tuple[Any, Any] = (None, None)  # in a tuple, as it is no part of its own
        self._step: tuple[Tensor, Draw, Tensor, Tensor] | None = None
        if channels_last:
            self.to(memory_format=torch.channels_last)
        self.configure_optimizers()  # a missing learning rate is found before any data is read

    def components(self) -> dict[str, nn.Module]:
        return {"energy": self.energy, "negatives": self.negatives}

    @property
    def learns_energy(self) -> bool:
        return True

    def tilt(self, condition: Tensor | None = None) -> nn.Module:
        """E alone, `(B, *event) -> (B,)`, given a condition `(B, *c)` where there is one."""
        return self.energy if condition is None else Given(self.energy, condition)

    def potential(self, condition: Tensor | None = None) -> nn.Module:
        """−log p(x|c) up to a constant: E and the reference, `(B, *event) -> (B,)`."""
        tilt: Any = self.tilt(condition)
        if self.reference is None:
            return tilt
        if condition is not None:
            return TiltedEnergy(tilt, self.reference)
        if self._potential[0] is not tilt:  # one object, so that chains need not read it anew
            self._potential = (tilt, TiltedEnergy(tilt, self.reference))
        return self._potential[1]

    def draw(
        self,
        num: int,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
        num_steps: int | None = None,
    ) -> Draw:
        """Run `num` chains; their starts, ends and latents.

        Arguments:
            num: How many.
            generator: Source of the noise.
            condition: With shape `(K, *c)`, repeated to `num` rows; examples if None and one is
                needed.
            num_steps: Steps; those of training if None, and 0 draws the starts.
        """
        if condition is None and self.condition is not None:
            condition = self.condition.examples(num)
        condition = repeat_rows(condition, num)
        # Under mixed precision chains stay in float32: gradients of 10⁴ meet factors of 10⁻⁶.
        with torch.autocast(self.device.type, enabled=False):
            return self.negatives(self.potential(condition), num, generator, condition, num_steps)

    def terms(self, batch: tuple[Tensor, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        x, label = batch
        condition = None if self.condition is None else self.condition(x, label)
        if self.data_noise:
            x = x + self.data_noise * noise_like(x, generator)
        drawn = self.draw(self.negatives.num_chains or len(x), generator, condition)
        both = None
        if condition is not None and drawn.condition is not None:
            both = torch.cat([condition, drawn.condition])
        energies = self.tilt(both)(torch.cat([x, drawn.x]))
        positive, negative = energies.split([len(x), len(drawn.x)])
        self._step = x.detach(), drawn, positive.detach(), negative.detach()
        terms = {"contrast": contrastive_divergence(positive, negative)}
        if self.energy_penalty:
            squares = positive.square() + negative.square().mean()
            terms["penalty"] = self.energy_penalty * squares
        return terms | self.negatives.loss(drawn, generator, Draw(x, x, condition))

    def step(self, batch: tuple[Tensor, Tensor], batch_idx: int, stage: str) -> Tensor:
        """The loss of a batch, logged by term."""
        terms = self.terms(batch, self.generator(batch_idx))
        self.require_finite(terms)
        means = {name: term.mean() for name, term in terms.items()}
        loss = torch.stack(list(means.values())).sum()
        log = {**means, "loss": loss}
        if stage != "train":
            log |= self.vital_signs()
        elif self.noting:
            self.signs = self.vital_signs()
            log |= self.signs
        self.log_dict(
            {f"{stage}/{name}": value for name, value in log.items()},
            batch_size=len(batch[0]),
            sync_dist=stage != "train",
        )
        return loss

    @torch.no_grad()
    def vital_signs(self) -> dict[str, Tensor]:
        """How the last step's chains and energies fare: scalars.

        Those of :func:`~eblvm.signs.vital_signs`; `gradient_first` and `gradient_last`, the mean
        norm of the chain's gradient at its start and its end; `out_of_range`, the share of negative
        numbers beyond [−1, 1]; `mean_error`, the mean squared difference of the mean datum and the
        mean negative; and the `diagnostics` of the negatives.
        """
        assert self._step is not None
        x, drawn, positive, negative = self._step
        potential = self.potential(drawn.condition)
        norms = [
            score(potential, at).flatten(1).square().sum(1).sqrt().mean()
            for at in (drawn.start, drawn.x)
        ]
        signs = vital_signs(x, drawn.x, positive, negative, drawn.start)
        signs |= {
            "energy_data": positive.mean(),
            "gradient_first": norms[0],
            "gradient_last": norms[1],
            "mean_error": (x.mean(0) - drawn.x.mean(0)).square().mean(),
        }
        if x.dim() == 4:
            signs["out_of_range"] = (drawn.x.abs() > 1).float().mean()
        return signs | self.negatives.diagnostics

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor | None:
        loss = None
        with self.watched():
            loss = self.step(batch, batch_idx, "train")
        if loss is None:  # a guard will go back to a good state
            return None
        assert self._step is not None
        drawn = self._step[1]
        self.negatives.keep(drawn)
        if batch_idx == 0 and self.condition is not None and drawn.condition is not None:
            self.condition.remember(drawn.condition)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step(batch, batch_idx, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.step(batch, batch_idx, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The energies E(x) + reference, `(B,)`: a score, low is likely, not a density."""
        condition = None if self.condition is None else self.condition(*batch)
        return self.potential(condition)(batch[0])

    def sample(
        self,
        num: int,
        generator: torch.Generator | None = None,
        noise: bool = False,
        num_steps: int | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Draw data, with shape `(num, *event)`: starts, refined by the chain of training.

        Arguments:
            num: How many.
            generator: Source of the noise.
            noise: Without effect: the ends of chains are the data, there is no p(x|z) around them.
            num_steps: Steps of refinement; `sampling_steps` if None, and 0 is the starter alone.
            condition: With shape `(K, *c)`, repeated to `num` rows; `condition.examples` if None.
        """
        num_steps = self.sampling_steps if num_steps is None else num_steps
        return self.draw(num, generator, condition, num_steps).x

    def reconstruct(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        num_steps: int | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Encode, decode and refine, with the shape of `x`.

        Raises:
            TypeError: If the negatives have no encoder.
        """
        z = self.encode(x, generator, condition)
        return self.refine(self.decode(z, condition), generator, num_steps, condition)

    def encode(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """The latents of data by the starter's encoder, which learned data if `data_weight` > 0.

        Raises:
            TypeError: If the negatives have no encoder.
        """
        if not isinstance(self.negatives, AmortizedNegatives):
            raise TypeError(
                f"{type(self.negatives).__name__} has no encoder, so nothing can be encoded or "
                "reconstructed; AmortizedNegatives has one."
            )
        return self.negatives.encode(x, generator, condition)

    def decode(self, z: Tensor, condition: Tensor | None = None) -> Tensor:
        """What the starter makes of latents `(B, D)`, before any refinement.

        Raises:
            TypeError: If the negatives have no latents.
        """
        if not isinstance(self.negatives, GeneratedNegatives):
            raise TypeError(
                f"the chains of {type(self.negatives).__name__} do not start from latents; those "
                "of CooperativeNegatives and AmortizedNegatives do."
            )
        return self.negatives.decode(z, condition)

    def refine(
        self,
        x: Tensor,
        generator: torch.Generator | None = None,
        num_steps: int | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Run the chain of training from given starts, `(B, *event)`."""
        return self._kernel(num_steps)(self.potential(condition), x, generator)

    def film(
        self,
        num: int,
        frames: int = 8,
        generator: torch.Generator | None = None,
        num_steps: int | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """States of `num` chains from start to end, with shape `(frames + 1, num, *event)`.

        Arguments:
            num: Chains.
            frames: States after the start, as evenly spaced as whole steps allow, the last that of
                the last step; as many as there are steps, if these are fewer.
            generator: Source of the noise.
            num_steps: Steps; `sampling_steps` if None.
            condition: As in `draw`.
        """
        if frames < 1:
            raise ValueError(f"frames is {frames}; expected 1 or more.")
        drawn = self.draw(num, generator, condition, num_steps=0)
        kernel = self._kernel(num_steps)
        shown = min(frames, kernel.num_steps)
        steps = [i * kernel.num_steps // shown for i in range(1, shown + 1)]
        every = math.gcd(*steps) or 1  # of no steps at all
        chain = kernel.run(self.potential(drawn.condition), drawn.start, generator, every)
        states = [chain.trajectory[step // every - 1] for step in steps]
        return torch.stack([drawn.start, *states])

    def inpaint(
        self,
        x: Tensor,
        visible: Tensor,
        generator: torch.Generator | None = None,
        num_steps: int | None = None,
        condition: Tensor | None = None,
    ) -> Tensor:
        """Fill in what is hidden by the chain of training on p(hidden | visible), like `x`.

        Where there is an encoder the hidden part starts at what it makes of the visible one, put
        through encoder and decoder ten times; otherwise where a new chain starts.

        Arguments:
            x: Data, with shape `(B, *event)`; the hidden part is not looked at.
            visible: Where data are seen, boolean, broadcast to the same shape.
            generator: Source of the noise.
            num_steps: Steps; `sampling_steps` if None.
            condition: With shape `(B, *c)`, where the model has one.
        """
        start = self.negatives.start(len(x), generator, condition).start
        if isinstance(self.negatives, AmortizedNegatives):
            start = torch.zeros_like(x)
            for _ in range(10):
                filled = torch.where(visible, x, start)
                start = self.decode(self.encode(filled, generator, condition), condition)
        seen = x + self.data_noise * noise_like(x, generator)  # as noisy as data were in training
        kernel = self._kernel(num_steps)
        ends = kernel(MaskedEnergy(self.potential(condition), seen, visible), start, generator)
        return torch.where(visible, x, ends)

    def _kernel(self, num_steps: int | None) -> Kernel:
        kernel = self.negatives.sampler
        num_steps = self.sampling_steps if num_steps is None else num_steps
        return kernel if num_steps is None else with_steps(kernel, num_steps)

    def scores(self, x: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """How much each of `x` looks like the data, `(B,)` each; high means in-distribution.

        `energy`, −E − the reference's; `gradient_norm`, minus the norm of their gradient.

        Raises:
            TypeError: If the model has a condition, which data from elsewhere lack.
        """
        if self.condition is not None:
            raise TypeError("a conditional energy scores pairs, and here are data alone.")
        potential = self.potential()
        with torch.no_grad():
            energy = potential(x)
        norm = score(potential, x).flatten(1).norm(dim=1)
        return {"energy": -energy, "gradient_norm": -norm}

    def chains(self, generator: torch.Generator | None = None) -> dict[str, ChainSetup]:
        """The chain of training; a conditional model's for its first example.

        Arguments:
            generator: Unused: no datum is needed.
        """
        condition = None if self.condition is None else self.condition.examples(1)
        return {"negatives": self.negatives.chain(self.potential(condition), condition)}

    def log_prob_on_grid(self, bounds: Bounds, resolution: int) -> Tensor:
        """log p(x) of points of the plane; log Z is summed over a box twice as wide.

        Arguments:
            bounds: The box, `((x_low, x_high), (y_low, y_high))`.
            resolution: Cells per axis.

        Returns:
            Nats at the centers of the cells, with shape `(resolution²,)`, in float64.
        """
        kind: dict[str, Any] = {"device": self.device, "dtype": next(self.parameters()).dtype}
        return energy_log_prob(self.potential(), bounds, resolution, **kind)
