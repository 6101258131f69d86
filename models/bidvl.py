"""Bi-level doubly variational learning: an energy, an encoder and a generator, without chains."""

from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from eblvm.energies import Energy
from eblvm.latent import LatentVariableModel
from eblvm.metrics.grid import Bounds, energy_log_prob
from eblvm.objectives import (
    Cycle,
    Divergence,
    SquaredCycle,
    SymmetricDivergence,
    contrastive_divergence,
    density_ratio,
    gaussian_kl,
)
from eblvm.samplers.score import score, squared_gradient
from eblvm.temperature import DenoisingTemperature

from .two_player import TwoPlayer

__all__ = ["BiDVL"]


class BiDVL(TwoPlayer):
    r"""An energy E(x), completed by an encoder q(z|x), and a generator p(z) p(x|z) that follows it.

    The upper level learns the energy, the lower level encoder and generator:

    .. math::
        L_{UL} &= \mathbb{E}_\pi[E(x)] - \mathbb{E}_{p(z)}[E(G(z))] \\
        L_{LL} &= \mathbb{E}_{p(z)}[E(G(z)) + w \|\mu(G(z)) - z\|^2]
            + \lambda\, \mathbb{E}_\pi[-\log p(x|z) + KL(q(z|x) \| p(z))]

    The second is the symmetric KL divergence between p(z) p(x|z) and exp(−E(x)) q(z|x): the
    *cycle* bounds the generator's entropy, and its other direction is an evidence bound, λ standing
    for the ratio of the model's density to that of the data. As the encoder is the model's own
    posterior, the upper level moves it, too, and exactly against the cycle; so the two are left
    out, and the cycle moves the generator only (`cancel`).

    A Gaussian likelihood of scale √½ makes −log p(x|z) the plain squared error of the released
    code. What the released objective learns is a right generator and an energy that orders points
    but has no temperature. Two ways to one, both ours and not the paper's: `decoder_noise` together
    with a `GaussianCycle` and λ in nats makes maximum likelihood the fixed point, of another game;
    `temperature` leaves the game, and so generator and samples, as it is, and fits a factor β on
    the energy to the training data, with which densities and scores are those of exp(−β E). For
    densities we recommend the second, with decoder noise, a squared cycle and an energy that may be
    steep (`toy/bidvl_steep_8gaussians`); for detection in images `temperature` and the score
    `product` (`image/bidvl_fashion_mnist_small`).

    References:
        Bi-level Doubly Variational Learning for Energy-based Latent Variable Models (Kan et al.,
        2022) and its released code: convolutional networks with `contrastive_divergence` and
        a `SquaredCycle` of 1/D, residual ones with `hinge` and 1e-4.

    Arguments:
        energy: E.
        latent: Prior, encoder and generator: a GaussianPrior, an AmortizedPosterior, and a
            likelihood.
        learning_rates: Rates of `energy`, `posterior` and `likelihood`.
        lower: The divergence of the lower level; `forward` is λ. With `ReverseDivergence` the
            encoder learns from the cycle, as nothing else would teach it.
        cycle: How badly z is found again in G(z).
        contrast: From energies of data and of samples to the loss of the upper level.
        cancel: Whether the cycle leaves the encoder alone. If not, the cycle takes a draw of
            q(z|x̂) for its mean and moves the encoder, as does KL(q(z|x̂) ‖ p(z))/D, in place of the
            upper level's unbounded share.
        decoder_noise: Whether samples are drawn from p(x|z) instead of being its mean.
        shared_latents: Whether the first steps of both levels take the same latents, as the
            released convolutional version does. The generator rests in between, so its samples are
            the same, too, and are made once; batch normalization sees them once, not twice.
        ratio_bounds: Clamp, such as (0.8, 1.2), of a weight p/π estimated for each datum on the
            evidence bound; 1 for all if None.
        warm_up: Batches at the start for which encoder and generator learn the evidence bound
            alone, and the energy rests.
        gradient_penalty: Factor γ/2 · ‖∇E‖² on data; γ itself.
        penalty_every: Batches between gradient penalties, each weighted by as much.
        energy_penalty: Factor on E(x)² + E(x̂)².
        temperature: How β is fitted, before each validation and after each epoch; 1 if None. A β
            below 0 says that the energy is upside down at the data, as it can be early on.
            Weights averaged by `--ema` are fitted at validations; between those they keep the β of
            the weights as they are.
        critic_optimizer: Of the energy; Adam with betas (0, 0.9) in the released code.
        player_optimizer: Of encoder and generator.
        critic_scheduler: As in `TwoPlayer`.
        player_scheduler: As in `TwoPlayer`.
        critic_steps: Steps of the energy per batch. The released residual version has another
            count, `n_critic`, of rounds in which energy, evidence bound and cycle learn, each
            time, and only the last of which lets the generator follow the energy. It ran with 1,
            where both are the same, and is not to be had here.
        player_steps: Steps K of encoder and generator per batch.
        clip_norm: As in `TwoPlayer`.
        channels_last: Whether filters, and with them all maps, lie in memory with channels last,
            which makes convolutions faster; results agree to rounding.

    Raises:
        ValueError: If a number is out of range, or a warm-up has nothing to learn.
        TypeError: When a run starts, if `temperature` finds no data module to take data from.
    """

    inverse_temperature: Tensor

    def __init__(
        self,
        energy: Energy,
        latent: LatentVariableModel,
        learning_rates: dict[str, float],
        lower: Divergence | None = None,
        cycle: Cycle | None = None,
        contrast: Callable[[Tensor, Tensor], Tensor] = contrastive_divergence,
        cancel: bool = True,
        decoder_noise: bool = False,
        shared_latents: bool = False,
        ratio_bounds: tuple[float, float] | None = None,
        warm_up: int = 0,
        gradient_penalty: float = 0.0,
        penalty_every: int = 1,
        energy_penalty: float = 0.0,
        temperature: DenoisingTemperature | None = None,
        critic_optimizer: OptimizerCallable = torch.optim.Adam,
        player_optimizer: OptimizerCallable = torch.optim.Adam,
        critic_scheduler: LRSchedulerCallable | None = None,
        player_scheduler: LRSchedulerCallable | None = None,
        critic_steps: int = 1,
        player_steps: int = 1,
        clip_norm: float | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__(
            learning_rates,
            critic_optimizer,
            player_optimizer,
            critic_scheduler,
            player_scheduler,
            critic_steps,
            player_steps,
            clip_norm,
        )
        for name, value, least in (
            ("warm_up", warm_up, 0),
            ("gradient_penalty", gradient_penalty, 0),
            ("penalty_every", penalty_every, 1),
            ("energy_penalty", energy_penalty, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}; expected {least} or more.")
        self.save_recipe()
        self.energy = energy
        self.latent = latent
        self.lower = SymmetricDivergence(0.05) if lower is None else lower
        self.cycle = SquaredCycle() if cycle is None else cycle
        self.contrast = contrast
        self.cancel = cancel
        self.decoder_noise = decoder_noise
        self.shared_latents = shared_latents
        self.ratio_bounds = ratio_bounds
        self.warm_up = warm_up
        self.gradient_penalty = gradient_penalty
        self.penalty_every = penalty_every
        self.energy_penalty = energy_penalty
        self.temperature = temperature
        if temperature is not None:
            self.register_buffer("inverse_temperature", torch.ones(()))
        self._batches_before = 0
        self._shared: tuple[Tensor, Tensor] | None = None
        if channels_last:
            self.to(memory_format=torch.channels_last)
        if warm_up and not self.lower.forward:
            raise ValueError("warm_up learns the evidence bound, and this divergence has none.")
        self.configure_optimizers()  # a missing learning rate is found before any data is read

    def setup(self, stage: str) -> None:
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if stage == "fit" and self.temperature is not None and not hasattr(data, "batches"):
            raise TypeError(
                "temperature is fitted to training data in order, which a data module of "
                "eblvm.data hands out, and this trainer has none. Pass one as `datamodule`, or set "
                "temperature to null."
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Checkpoints from before there was a temperature have β = 1; a warm-up is once."""
        self._batches_before = checkpoint.get("global_step", 0)
        if self.temperature is not None:
            # the second is there where the first holds averaged weights
            for state in ("state_dict", "current_model_state"):
                if state in checkpoint:
                    checkpoint[state].setdefault("inverse_temperature", torch.ones(()))

    def critic(self) -> dict[str, nn.Module]:
        return {"energy": self.energy}

    def player(self) -> dict[str, nn.Module]:
        return {name: getattr(self.latent, name) for name in ("prior", "posterior", "likelihood")}

    def twice_differentiated(self) -> list[nn.Module]:
        return [self.energy] if self.gradient_penalty else []

    @property
    def warming(self) -> bool:
        """Whether the energy still rests; a trainer that only evaluates counts no steps itself."""
        batches = max(self.global_step, self._batches_before)
        return self._trainer is not None and batches < self.warm_up

    def turns(self) -> tuple[int, int]:
        return (0 if self.warming else self.critic_steps), self.player_steps

    def draw(self, num: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Latents `(B, D)` and the generator's data for them, with a graph."""
        z = self.latent.prior.sample(num, generator)
        return z, self.generate(z, generator)

    def generate(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """The generator's data for latents `(B, D)`, as training sees them, with a graph."""
        likelihood = self.latent.likelihood
        return likelihood.sample(z, generator) if self.decoder_noise else likelihood.mean(z)

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), each with shape `(B, D)`."""
        latent = self.latent
        return latent.posterior.proposal(x, latent.prior, latent.likelihood)

    def density_energy(self, x: Tensor) -> Tensor:
        """β E(x), the energy of the density that the model stands for, `(B,)`."""
        energy = self.energy(x)
        return energy if self.temperature is None else self.inverse_temperature * energy

    def fit_temperature(self) -> None:
        """Fit β to the training data at the energy as it is.

        Where the energy is flat all over the data, any β is as good, and it is left as it was.
        """
        if self.temperature is None:
            return
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        share, seen = -(-self.temperature.num // self.trainer.world_size), 0
        rows = 1 + self.temperature.extrapolate
        sums = torch.zeros(rows, 2, dtype=torch.float64, device=self.device)
        kind = self.inverse_temperature.dtype
        for i, (x, _) in enumerate(data.batches("train", in_order=True)):
            x = x[: share - seen].to(self.device, kind)
            sums += self.temperature.sums(self.energy, x, self.generator(i, 8))
            seen += len(x)
            if seen >= share:
                break
        gathered: Any = self.all_gather(sums)
        fitted = self.temperature.fit(gathered.view(-1, *sums.shape).sum(0))
        if fitted is not None:
            self.inverse_temperature.copy_(fitted)

    def on_validation_epoch_start(self) -> None:
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.fit_temperature()  # averaged weights are in place by now

    def on_train_epoch_end(self) -> None:
        super().on_train_epoch_end()
        self.fit_temperature()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        if self.shared_latents and self.lower.reverse and not self.warming:
            # made before either player is frozen: the generator needs the graph
            self._shared = self.draw(len(batch[0]), self.generator(batch_idx, 2))
        super().training_step(batch, batch_idx)
        self._shared = None

    def critic_terms(
        self, batch: tuple[Tensor, Tensor], generator: torch.Generator, step: int
    ) -> dict[str, Tensor]:
        x = batch[0]
        if self._shared is not None and step == 0:
            sample = self._shared[1].detach()
        else:
            with torch.no_grad():
                sample = self.draw(len(x), generator)[1]
        # one pass of both: one power iteration of spectral norms, and the same norms for both
        positive, negative = self.energy(torch.cat([x, sample])).split(len(x))
        terms = {"contrast": self.contrast(positive, negative)}
        if self.energy_penalty:
            squares = positive.square() + negative.square().mean()
            terms["energy_penalty"] = self.energy_penalty * squares
        if self.gradient_penalty and self.global_step % self.penalty_every == 0:
            factor = 0.5 * self.gradient_penalty * self.penalty_every
            terms["gradient_penalty"] = factor * squared_gradient(self.energy, x)
        self.look(x, sample, positive, negative)
        return terms

    def player_terms(
        self, batch: tuple[Tensor, Tensor], generator: torch.Generator, step: int
    ) -> dict[str, Tensor]:
        x = batch[0]
        terms: dict[str, Tensor] = {}
        if self.lower.forward:  # KL(p ‖ generator) on data: λ times the negative evidence bound
            weight = self.lower.forward * self.ratio(x)
            terms |= {n: weight * term for n, term in self.latent.loss(x, generator).items()}
        if self.lower.reverse and not self.warming:  # KL(generator ‖ p), its entropy bounded
            shared, self._shared = self._shared, None  # its graph serves one step
            z, sample = shared or self.draw(len(x), generator)
            reverse = {"energy": self.energy(sample)}
            reverse |= self.cycle_terms(z, sample, generator)
            terms |= {n: self.lower.reverse * term for n, term in reverse.items()}
        return terms

    def cycle_terms(
        self, z: Tensor, sample: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """How badly z is found again; gradients reach the generator through live samples."""
        if self.cancel and self.lower.forward:
            with self.frozen({"posterior": self.latent.posterior}):
                return {"cycle": self.cycle(z, *self.encode(sample))}
        mean, log_variance = self.encode(sample)
        if self.cancel:  # nothing else would teach the encoder
            return {"cycle": self.cycle(z, mean, log_variance)}
        eps = torch.randn(z.shape, dtype=z.dtype, device=z.device, generator=generator)
        again = mean + (0.5 * log_variance).exp() * eps
        upper = gaussian_kl(*self.encode(sample.detach()))
        return {"cycle": self.cycle(z, again, log_variance), "upper": upper / z.shape[1]}

    def ratio(self, x: Tensor) -> Tensor | float:
        """The weight of each datum on the evidence bound, `(B,)`, or 1."""
        if self.ratio_bounds is None:
            return 1.0
        with torch.no_grad():
            return density_ratio(self.energy(x), *self.ratio_bounds)

    def evaluate(self, batch: tuple[Tensor, Tensor], batch_idx: int, stage: str) -> None:
        """Log what to watch: are data and samples told apart, latents found, data rebuilt?"""
        x, generator = batch[0], self.generator(batch_idx)
        z = self.latent.prior.sample(len(x), generator)
        sample = self.generate(z, generator)
        log_variance = self.encode(x)[1]
        found, spread = self.encode(sample)
        positive, negative = self.energy(x), self.energy(sample)
        bound = self.latent.loss(x, generator)
        figures = {
            "energy_data": positive,
            "energy_samples": negative,
            "energy_gap": positive - negative,
            "reconstruction": bound["reconstruction"],
            "prior": bound["prior"],
            "latent_error": (found - z).square().sum(1),
            "posterior_std": (0.5 * log_variance).exp().mean(1),
            "posterior_std_samples": (0.5 * spread).exp().mean(1),
        }
        terms = self.player_terms(batch, generator, 0)
        figures["loss"] = torch.stack([term.mean() for term in terms.values()]).sum()
        if self.temperature is not None:
            figures["inverse_temperature"] = self.inverse_temperature
        self.log_dict(
            {f"{stage}/{name}": value.mean() for name, value in figures.items()},
            batch_size=len(x),
            sync_dist=True,
        )

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(batch, batch_idx, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluate(batch, batch_idx, "test")

    def predict_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The means of q(z|x), with shape `(B, D)`."""
        return self.encode(batch[0])[0]

    def sample(
        self, num: int, generator: torch.Generator | None = None, noise: bool = False
    ) -> Tensor:
        """Draw data in one pass, with shape `(num, *event)`.

        Arguments:
            num: How many.
            generator: Source of the noise.
            noise: Whether to draw from p(x|z), where training did; else its mean.
        """
        return self.latent.sample(num, generator, noise and self.decoder_noise)

    def reconstruct(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Decode the posterior mean, with the shape of `x`."""
        return self.latent.reconstruct(x, generator)

    def log_prob_on_grid(self, bounds: Bounds, resolution: int) -> Tensor:
        """log p(x) ∝ −β E(x) of points of the plane, `(resolution²,)`; see `energy_log_prob`."""
        kind: dict[str, Any] = {"device": self.device, "dtype": self.latent.prior.origin.dtype}
        return energy_log_prob(self.density_energy, bounds, resolution, **kind)

    @torch.no_grad()
    def scores(self, x: Tensor, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        r"""How much each of `x` looks like the data, `(B,)` each; high means in-distribution.

        `energy`, −E; `gradient_norm`, −‖∇E‖; `joint`, −E + log q(z|x) at q's mean; `bound`, the
        evidence bound of encoder and generator; `reconstruction`, −‖x − G(μ(x))‖²;
        `likelihood_ratio`, −E minus the bound: the energy's density over the generator's;
        `product`, −E plus the bound, what both find likely: each knows other things that are no
        data. With a `temperature` E is β times the energy, and −E and the bound are both in nats;
        without, it is the energy before an activation that may saturate, whose order is the same.
        """
        raw: Any = self.density_energy
        if self.temperature is None:
            raw = getattr(self.energy, "raw", self.energy)
        energy = raw(x)
        mean, log_variance = self.encode(x)
        bound = -sum(self.latent.loss(x, generator).values(), torch.zeros_like(energy))
        error = (x - self.latent.likelihood.mean(mean)).square().flatten(1).sum(1)
        normalizer = torch.log(torch.tensor(2 * torch.pi))
        return {
            "energy": -energy,
            "gradient_norm": -score(raw, x).flatten(1).norm(dim=1),
            "joint": -energy - 0.5 * (log_variance + normalizer).sum(1),
            "bound": bound,
            "reconstruction": -error,
            "likelihood_ratio": -energy - bound,
            "product": bound - energy,
        }
