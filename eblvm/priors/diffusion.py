r"""A prior learned by diffusion recovery likelihood: a chain of conditional energies.

A latent z is noised in T steps, z_0 (almost z) to z_T (almost N(0, I)), by a
:class:`~eblvm.schedules.NoiseSchedule`. The way back is learned: with :math:`\tilde z_t = a_{t+1}
z_t`,

.. math:: p(\tilde z_t \mid z_{t+1}) \propto \exp\!\left(-\frac{E(\tilde z_t, t)}{\tau_t}
    - \frac{\|\tilde z_t - z_{t+1}\|^2}{2 \sigma_{t+1}^2}\right), \qquad t < T - 1,

and the last level, where z_T says nothing any more, is the tilted Gaussian
:math:`p(z_{T-1}) \propto \exp(-E(z_{T-1}, T - 1)/\tau_{T-1})\, N(z_{T-1}; 0, \sigma_T^2 I)`.
Each of these is close to a Gaussian, so that short chains mix where a chain on one multimodal prior
would not.

Chains take steps :math:`s_t^2 = \delta\, \sigma_{t+1}^2\, \bar\sigma_t / \bar\sigma_0` and the
temperature, unless another is given, is τ_t = s_t²: the gradient of E then enters each step with
the factor ½ at every level.

Without a tilt the levels below the last have no density to go back to: each adds its noise, and z_0
ends far wider than it began. A `stationary` prior (ours) gives them the base that the last one has,

.. math:: p(\tilde z_t \mid z_{t+1}) \propto \exp\!\left(-\frac{E(\tilde z_t, t)}{\tau_t}\right)
    N(\tilde z_t; 0, a_{t+1}^2 I)\, N(z_{t+1}; \tilde z_t, \sigma_{t+1}^2 I),

whose Gaussians multiply to :math:`N(\tilde z_t; a_{t+1}^2 z_{t+1}, a_{t+1}^2 \sigma_{t+1}^2 I)`,
the way back of the noising of N(0, I). Untilted its density is N(0, I), up to the last level's
σ_T, and its short chains draw nearly that, so the tilt has to learn only how the latents differ.
Steps are as large relative to this Gaussian as the others are to their tie: its width a_{t+1}
σ_{t+1} stands for σ_{t+1} in s_t.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Normal

from ..energies import RecoveryEnergy, SymbolVectorTimeEnergy, TimeEnergy
from ..objectives.variational import negative_entropy
from ..samplers import AIS, ChainSetup, Langevin, noise_like
from ..schedules import NoiseSchedule, at
from .prior import Prior

__all__ = ["DiffusionEnergyPrior"]


class DiffusionEnergyPrior(Prior):
    r"""The prior of the latent diffusion energy-based model.

    `loss` draws a level t in 0 … T − 2 for each row and takes the last level besides, runs the
    chains of both in one batch from the noisier states, and returns

    .. math:: w_t [E(\tilde z_t, t) - E(\tilde z_t^-, t)] + w_{T-1} [E(z_{T-1}, T - 1)
        - E(z_{T-1}^-, T - 1) + \tfrac12 \|z_{T-1}\|^2], \qquad w_t = \sigma_1 / \sigma_{t+1}.

    Negatives are detached, so the parameters get the contrast, and z gets the pull of the energies
    of the states that it was noised to and of the base. This is a reweighted bound, not the bound:
    one level stands for the sum over levels, without the factor T − 1; energies enter without
    their temperature; and the gradient in z of log Z_t(z_{t+1}) is left out unless asked for.

    References:
        Latent Diffusion Energy-Based Model for Interpretable Text Modelling (Yu et al., 2022), and
        its released code, which divides energies by s² in its sampler only. The paper writes
        F = −E.
        Learning Energy-Based Models by Diffusion Recovery Likelihood (Gao et al., 2021).

    Arguments:
        latent_dim: D.
        tilt: E, `(B, D), (B,) -> (B,)`; a `SymbolVectorTimeEnergy` gives symbols.
        schedule: Levels of noise; level 0 must carry some.
        num_steps: Langevin steps at each level.
        step_variance: δ.
        noise_scale: A factor on the noise of the chains; recovery likelihood takes 0.99 when it
            draws images, the latent model 1.
        free_bits: Dimensions with −½ (1 + log-variance) at most this do not count in `divergence`;
            None counts all.
        temperature: τ, the same at all levels; None for the published τ_t = s_t². That one spans
            three orders of magnitude, and a network that learns at one rate is too noisy for the
            coldest levels.
        weighted: Whether w_t = σ_1/σ_{t+1}; otherwise w_t = 1.
        normalizer_gradient: Whether z gets the gradient of w_t τ_t log Z_t(z_{t+1}), too, which the
            released code neglects: the energies' own scale, undivided by τ_t.
        num_normalizer: Draws for each estimate of log Z_t(z_{t+1}) in `log_prob`.
        annealing: Estimates log Z_t(z_{t+1}) by annealed importance sampling in place of plain
            importance sampling, with `num_normalizer` chains each. Plain sampling is good where
            E/τ varies by a few nats over the tie's width.
        stationary: Whether all levels have a Gaussian base, so that N(0, I) is what the chain of
            levels draws without a tilt; chains then start from the mean of the untilted step. The
            base's pull on z is that of N(0, I), ½‖z‖², in place of the last level's: all of the
            bound's, where tilts count by one level at a time and without their temperature, so
            that the weight of this term says how wide latents get.

    Raises:
        ValueError: If level 0 of the schedule carries no noise, which step sizes are relative to;
            or if `step_variance` or `temperature` is not positive.
    """

    step_size: Tensor
    temperature: Tensor
    weight: Tensor
    scale: Tensor
    shrink: Tensor
    width: Tensor

    def __init__(
        self,
        latent_dim: int,
        tilt: TimeEnergy,
        schedule: NoiseSchedule,
        num_steps: int = 50,
        step_variance: float = 2e-3,
        noise_scale: float = 1.0,
        free_bits: float | None = None,
        temperature: float | None = None,
        weighted: bool = True,
        normalizer_gradient: bool = False,
        num_normalizer: int = 1000,
        annealing: AIS | None = None,
        stationary: bool = False,
    ) -> None:
        super().__init__(latent_dim)
        if not schedule.sigma_bar[0] > 0:
            raise ValueError(
                "level 0 of the schedule carries no noise, but step sizes are relative to it; "
                "use a schedule with a_0 < 1, such as RecoverySchedule."
            )
        if not step_variance > 0:
            raise ValueError(f"step_variance is {step_variance}; expected a positive number.")
        if temperature is not None and not temperature > 0:
            raise ValueError(
                f"temperature is {temperature}; expected a positive number, or None for s²."
            )
        self.tilt = tilt
        self.schedule = schedule
        self.num_steps = num_steps
        self.noise_scale = noise_scale
        self.free_bits = free_bits
        self.normalizer_gradient = normalizer_gradient
        self.stationary = stationary
        self.num_normalizer = num_normalizer
        self.annealing = annealing
        sigma, noise = schedule.sigma[1:], schedule.sigma_bar[:-1]
        last = torch.arange(len(schedule)) == len(schedule) - 1
        scale = torch.where(last, torch.ones_like(sigma), schedule.a[1:])
        shrink, width = torch.ones_like(sigma), sigma
        if stationary:
            shrink = torch.where(last, shrink, 1 / (1 + (sigma / scale).square()))
            width = sigma * shrink.sqrt()
        variance = step_variance * width.square() * noise / noise[0]
        for name, value in {
            "step_size": variance.sqrt(),
            "temperature": variance
            if temperature is None
            else torch.full_like(variance, temperature),
            "weight": sigma[0] / sigma if weighted else torch.ones_like(sigma),
            "scale": scale,
            "shrink": shrink,  # center of an untilted step, as a factor on z_{t+1}
            "width": width.clone(),  # its scale
        }.items():
            self.register_buffer(name, value, persistent=False)

    # The densities of the steps

    def conditional(
        self,
        z_next: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        energy: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> RecoveryEnergy:
        """The energy of z̃_t given z_{t+1}; at the last level z_{t+1} plays no part.

        Arguments:
            z_next: z_{t+1}, with shape `(B, D)`.
            t: Levels, int64 `(B,)`.
            context: With shape `(B, C)`, for a tilt that takes one.
            energy: `(z̃, t) -> (B,)`, to stand in for the tilt.
        """
        if energy is None:
            energy = self.tilt if context is None else partial(self.tilt, context=context)
        last = (t == len(self.schedule) - 1).unsqueeze(1)
        start = self._start(z_next, t)
        center = torch.where(last, torch.zeros_like(start), start)
        return RecoveryEnergy(energy, t, center, self.width[t], temperature=self.temperature[t])

    def _start(self, z_next: Tensor, t: Tensor | int) -> Tensor:
        """Where the chain of z̃_t given z_{t+1} starts: at its tie, the last level's at z_T."""
        return at(self.shrink, t, z_next) * z_next

    def _run(
        self,
        z_next: Tensor,
        t: Tensor,
        generator: torch.Generator | None,
        context: Tensor | None = None,
        energy: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """z̃_t given z_{t+1}, by a short chain; detached, with shape `(B, D)`."""
        sampler = Langevin(self.num_steps, self.step_size[t], self.noise_scale)
        start = self._start(z_next, t)
        return sampler(self.conditional(z_next, t, context, energy), start, generator)

    def energy(self, z: Tensor) -> Tensor:
        """Not to be had: the later states cannot be summed out.

        Raises:
            TypeError: Always; it names what to use instead.
        """
        raise TypeError(
            "DiffusionEnergyPrior has no tractable energy(z): p(z) is a chain of conditional "
            "energies. A chain on p(z|x) needs another prior, such as EnergyPrior; here use an "
            "AmortizedPosterior, `conditional(z_next, t)` for the energy of one step, or "
            "`log_prob` for an estimate of log p(z)."
        )

    # Drawing

    def trajectory(
        self,
        num: int,
        generator: torch.Generator | None = None,
        label: Tensor | None = None,
        context: Tensor | None = None,
    ) -> list[Tensor]:
        """z_T, z_{T−1}, …, z_0, each detached with shape `(num, D)`.

        Arguments:
            num: How many.
            generator: Source of the noise.
            label: Symbols int64 `(num,)`. They replace the summed-out symbol at level 0 only, where
                symbols are read; the levels above draw what all symbols share.
            context: With shape `(num, C)`, for a tilt that takes one.
        """
        context = None if context is None else context.detach()
        z = noise_like(self.origin.expand(num, -1), generator)
        states = [z]
        for level in reversed(range(len(self.schedule))):
            t = torch.full((num,), level, device=z.device)
            energy = None
            if label is not None and level == 0:
                energy = partial(self._symbols().given, y=label, context=context)
            z = self._run(z, t, generator, context, energy) / self.scale[level]
            states.append(z)
        return states

    def sample(
        self,
        num: int,
        generator: torch.Generator | None = None,
        label: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        return self.trajectory(num, generator, label, context)[-1]

    def chains(self, generator: torch.Generator | None = None) -> dict[str, ChainSetup]:
        """A chain per level, all of a level's from one draw of the noisier state."""
        states = self.trajectory(1, generator)
        found = {}
        for level in reversed(range(len(self.schedule))):
            z_next = states[len(self.schedule) - 1 - level]
            first = self._start(z_next, level)

            def energy(z: Tensor, level: int = level, z_next: Tensor = z_next) -> Tensor:
                t = torch.full((len(z),), level, device=z.device)
                return self.conditional(z_next.expand(len(z), -1), t)(z)

            def start(num: int, generator: torch.Generator | None, first: Tensor = first) -> Tensor:
                return first.expand(num, -1).clone()

            sampler = Langevin(self.num_steps, float(self.step_size[level]), self.noise_scale)
            found[f"prior_level_{level}"] = ChainSetup(energy, sampler, start)
        return found

    # Learning

    def loss(
        self,
        z: Tensor,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        context = None if context is None else context.detach()
        num, last = len(z), len(self.schedule) - 1
        t = torch.full((num,), last, device=z.device)
        z_t, z_next = self.schedule.sample_pair(z, t, generator)
        base = 0.5 * z_t.square().sum(1) * self.weight[last]
        if self.stationary:
            base = 0.5 * z.square().sum(1)
        if last > 0:  # a level below the last for each row, in the same batch
            drawn = torch.randint(last, (num,), generator=generator, device=z.device)
            pair = self.schedule.sample_pair(z, drawn, generator)
            t = torch.cat([drawn, t])
            z_t, z_next = torch.cat([pair[0], z_t]), torch.cat([pair[1], z_next])
            context = None if context is None else torch.cat([context, context])
        positive = self.scale[t].unsqueeze(1) * z_t
        negative = self._run(z_next.detach(), t, generator, context)
        twice = None if context is None else torch.cat([context, context])
        arguments = (torch.cat([positive, negative]), torch.cat([t, t]))
        energies = self.tilt(*arguments) if twice is None else self.tilt(*arguments, twice)
        positive_energy, negative_energy = energies.split(len(t))
        start = self._start(z_next.detach(), t)
        self._saw(positive, negative, positive_energy, negative_energy, start)
        contrast = self.weight[t] * (positive_energy - negative_energy)
        if self.normalizer_gradient:
            pull = (negative - start) * (self.shrink / self.width.square())[t].unsqueeze(1)
            pull = torch.where((t < last).unsqueeze(1), pull, torch.zeros_like(pull))
            along = (pull * z_next).sum(1)  # ∇ log Z(z_{t+1}), by Stein's identity
            along = self.weight[t] * self.temperature[t] * along  # as E, which is not divided by τ
            contrast = contrast + along - along.detach()
        self.diagnostics = {
            "tilt_positive": positive_energy.detach().mean(),
            "tilt_negative": negative_energy.detach().mean(),
            "displacement": (negative - start).square().sum(-1).sqrt().mean(),
            "negative_scale": negative[-num:].std(),
            "latent_scale": z.detach().square().mean().sqrt(),
        }
        return contrast.view(-1, num).sum(0) + base

    def divergence(
        self,
        z: Tensor,
        mean: Tensor,
        log_variance: Tensor,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        return negative_entropy(log_variance, self.free_bits) + self.loss(z, generator, context)

    # Symbols

    def _symbols(self) -> SymbolVectorTimeEnergy:
        if not isinstance(self.tilt, SymbolVectorTimeEnergy):
            raise TypeError(
                f"the prior's tilt is a {type(self.tilt).__name__}, which has no symbols; use a "
                "SymbolVectorTimeEnergy."
            )
        return self.tilt

    def symbol_logits(
        self,
        z: Tensor,
        generator: torch.Generator | None = None,
        noise: bool = False,
        context: Tensor | None = None,
    ) -> Tensor:
        """f(a_1 z_0, 0), with z_0 = z or, with `noise`, drawn given z; divided by the tilt's
        `symbol_temperature`, not by τ."""
        z_0 = self.schedule.diffuse(z, 0, generator) if noise else z
        t = torch.zeros(len(z), dtype=torch.long, device=z.device)
        context = None if context is None else context.detach()
        return self._symbols().logits(self.scale[0] * z_0, t, context)

    # Evaluation

    def state(self, mean: Tensor, log_variance: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of z_0, the variable that `sample` draws."""
        a, sigma = self.schedule.a[0], self.schedule.sigma[0]
        return a * mean, (a.square() * log_variance.exp() + sigma.square()).log()

    @torch.no_grad()
    def log_prob(
        self,
        z: Tensor,
        log_normalizer: Tensor | None = None,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        r"""log of an estimate of p(z_0), along one noising chain from `z`, `(B,)`.

        .. math:: \hat p(z_0) = p(z_{T-1}) \prod_{t < T-1} \frac{a_{t+1}^D\,
            \exp(-E(\tilde z_t, t)/\tau_t)}{\hat Z_t(z_{t+1})}, \qquad Z_t(u) =
            \mathbb{E}_{v \sim N(u, \sigma_{t+1}^2 I)} \exp(-E(v, t)/\tau_t)

        The ties cancel against q(z_{t+1}|z_t), but for the bases of a `stationary` prior. With
        exact Z it is unbiased for p(z_0) of the model whose chains have converged; estimates of Z
        make it biased upward, ever less as `num_normalizer` grows.

        Arguments:
            z: z_0, with shape `(B, D)`.
            log_normalizer: That of the last level; estimated if None.
            generator: Source of the noise.
            context: With shape `(B, C)`, for a tilt that takes one.
        """
        if log_normalizer is None:
            log_normalizer = self.log_normalizer(generator=generator, context=context)
        tilt = self.tilt if context is None else partial(self.tilt, context=context)
        total = torch.zeros(len(z), dtype=torch.float64, device=z.device)
        last = len(self.schedule) - 1
        for level in range(last):
            z_next = self.schedule.step(z, level, generator)
            t = torch.full((len(z),), level, device=z.device)
            e = tilt(self.scale[level] * z, t).double() / self.temperature[level]
            log_z = self._log_normalizer(z_next, level, generator, context=context)
            total += self.latent_dim * self.scale[level].double().log() - e - log_z
            if self.stationary:
                z_t, a = z.double(), self.scale[level].double()
                sigma, width = self.schedule.sigma[level + 1].double(), self.width[level].double()
                back = Normal(self._start(z_next, level).double(), width).log_prob(a * z_t)
                total += (back - Normal(a * z_t, sigma).log_prob(z_next.double())).sum(1)
            z = z_next
        t = torch.full((len(z),), last, device=z.device)
        return total - self.conditional(z, t, context)(z).double() - log_normalizer

    @torch.no_grad()
    def released_log_prob(
        self, z: Tensor, log_q: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        """log p(z) as the released code estimates it, which is not consistent.

        All levels are drawn independently given z, energies enter at temperature 1, and each
        normalizer is a mean over the K draws with q(z_t|z) as proposal and a separate draw of the
        noisier state. For comparison with published figures only; `log_prob` is the estimator.
        """
        flat, schedule = z.flatten(0, 1), self.schedule
        total = torch.zeros_like(log_q)

        def log_normal(x: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
            squared = ((x - mean) / sigma).square() + 2 * sigma.log() + math.log(2 * math.pi)
            return -0.5 * squared.sum(-1).view_as(log_q)

        def log_step(state: Tensor, z_next: Tensor, level: int) -> Tensor:
            t = torch.full((len(state),), level, device=z.device)
            step = self.conditional(z_next, t)
            scaled = self.scale[level] * state
            return -(self.tilt(scaled, t) + step.tie(scaled)).view_as(log_q)

        states = [schedule.diffuse(flat, t, generator) for t in range(len(schedule) + 1)]
        for level in range(len(schedule)):
            state, z_next = states[level], states[level + 1]
            proposal = schedule.diffuse(flat, level, generator)
            condition = schedule.diffuse(flat, level + 1, generator)
            log_w = log_step(proposal, condition, level)
            log_w = log_w - log_normal(
                proposal, schedule.a_bar[level] * flat, schedule.sigma_bar[level]
            )
            log_z = torch.logsumexp(log_w, 0) - math.log(len(z))
            forward = log_normal(z_next, schedule.a[level + 1] * state, schedule.sigma[level + 1])
            total += log_step(state, z_next, level) - log_z - forward
        last = states[-1]
        return total + log_normal(last, torch.zeros_like(last), torch.ones_like(schedule.a[0]))

    @torch.no_grad()
    def log_normalizer(
        self,
        num: int = 10_000,
        generator: torch.Generator | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """log Z of the last level, the tilted Gaussian, by sampling its base; a scalar.

        Arguments:
            num: Draws of the base.
            generator: Source of the noise.
            context: With shape `(B, C)`, for a tilt that takes one; log Z has shape `(B,)` then.
        """
        last = len(self.schedule) - 1
        origin = self.origin.expand(1 if context is None else len(context), -1)
        log_z = self._log_normalizer(origin, last, generator, num, context)
        width = math.log(2 * math.pi) + 2 * float(self.schedule.sigma[-1].log())
        log_z = log_z + 0.5 * self.latent_dim * width
        return log_z[0] if context is None else log_z

    def _log_normalizer(
        self,
        z_next: Tensor,
        level: int,
        generator: torch.Generator | None,
        num: int | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """log E exp(−E(v)/τ) over the untilted v given z_{t+1}, estimated, `(B,)` in float64."""
        num = num or self.num_normalizer
        sigma, temperature = self.width[level], self.temperature[level]
        center = self._start(z_next, level)
        rows = max(1, 65_536 // num)
        found = []
        for i, part in enumerate(center.split(rows)):
            centers = part.repeat_interleave(num, 0)
            t = torch.full((len(centers),), level, device=center.device)
            tilt: Any = self.tilt
            if context is not None:
                of_part = context[i * rows : i * rows + len(part)]
                tilt = partial(self.tilt, context=of_part.repeat_interleave(num, 0))
            if self.annealing is None:
                v = centers + sigma * noise_like(centers, generator)
                log_w = -tilt(v, t).double() / temperature
            else:
                log_w = self._annealed(tilt, centers, t, generator)
            found.append(torch.logsumexp(log_w.view(len(part), num), 1) - math.log(num))
        return torch.cat(found)

    def _annealed(
        self, tilt: Any, centers: Tensor, t: Tensor, generator: torch.Generator | None
    ) -> Tensor:
        """log weights `(N,)` of chains from N(0, I) to the tilted density of (v − center)/σ."""
        sigma, temperature = self.width[t].unsqueeze(1), self.temperature[t]

        def energy(eps: Tensor) -> Tensor:
            return tilt(centers + sigma * eps, t) / temperature + 0.5 * eps.square().sum(1)

        assert self.annealing is not None
        weights = self.annealing.forward(energy, centers, generator).log_weights
        return weights - 0.5 * self.latent_dim * math.log(2 * math.pi)

    @torch.no_grad()
    def nodes(self, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """10,000 samples: what the short chains draw, which is what generation uses.

        The energies' own density, were chains to converge, is `log_prob_on_axis`.
        """
        z = torch.cat([self.sample(1000, generator) for _ in range(10)])
        return self._as_nodes(z)

    @torch.no_grad()
    def log_prob_on_axis(self, axis: Tensor) -> Tensor:
        """log p(z_0) of a prior of the plane, by quadrature over all later states.

        It is the density of the energies, which short chains need not have reached. Each level is
        two Gaussian convolutions on the grid, done with logarithms. What lies beyond the grid is
        lost.

        Arguments:
            axis: Evenly spaced coordinates `(N,)`, the same for both axes.

        Returns:
            Nats, normalized over the grid, with shape `(N, N)`, in float64.
        """
        if self.latent_dim != 2:
            raise ValueError(f"latent_dim is {self.latent_dim}; expected 2, for the plane.")
        axis64 = axis.double()
        log_step = (axis64[1] - axis64[0]).log()
        last = len(self.schedule) - 1
        log_p = torch.zeros(())
        for level in reversed(range(last + 1)):
            a, sigma = self.scale[level].double(), self.width[level].double()
            states = torch.cartesian_prod(a * axis64, a * axis64)
            tilt = -torch.cat(
                [
                    self.tilt(part, torch.full((len(part),), level, device=part.device))
                    for part in states.to(axis.dtype).split(50_000)
                ]
            ).double()
            log_f = (tilt / self.temperature[level].double()).view(len(axis), len(axis))
            # rows: z̃ = a · axis; columns: z_{t+1} on the axis, or its single center 0
            centers = self._start(axis64, level) if level < last else axis64.new_zeros(1)
            kernel = -(a * axis64[:, None] - centers).square() / (2 * sigma**2)
            if level == last:
                log_p = log_f + kernel + kernel.T
            else:
                log_z = _convolved(kernel.T, log_f)  # of each z_{t+1}
                log_p = log_f + _convolved(kernel, log_p - log_z)
            log_p = log_p - log_p.flatten().logsumexp(0) - 2 * log_step
        return log_p


def _convolved(kernel: Tensor, values: Tensor) -> Tensor:
    """log(K e^V Kᵀ) with K = exp(kernel) `(M, N)` and V `(N, N)`, with shape `(M, M)`."""
    return _log_matmul(kernel, _log_matmul(kernel, values).T).T


def _log_matmul(a: Tensor, b: Tensor) -> Tensor:
    """log(exp(a) @ exp(b)), for `(M, N)` and `(N, K)` in float64.

    A product of exponentials where none of its sums has underflowed, else sum by sum.
    """
    shift = b.amax(0)
    product = a.exp() @ (b - shift).exp()
    result = product.log() + shift
    for i in (product < 1e-250).any(1).nonzero()[:, 0].tolist():
        result[i] = torch.logsumexp(b.T + a[i], 1)
    return result
