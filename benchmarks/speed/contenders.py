"""Energies to sample, and who samples them: eblvm, PyTorch loops, torchebm and blackjax.

A contender is a function without arguments that runs a chain of `steps` steps (gradients, for HMC)
and returns its last states. All start at the same states with the same step size.
"""

import math
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from eblvm.energies import SymbolVectorTimeEnergy
from eblvm.models.networks import ResidualTimeNet
from eblvm.samplers import HMC, MALA, Kernel, Langevin, compilation

Runs = dict[str, Callable[[], Any]]
"""From kernels to contenders."""

STEP = 0.05
LEAPFROG = 10
CENTERS = [(4 * math.cos(k * math.pi / 4), 4 * math.sin(k * math.pi / 4)) for k in range(8)]


def double_well(x: Tensor) -> Tensor:
    """(x² − 1)², summed over two coordinates."""
    return (x.square() - 1).square().sum(1)


class Mixture(nn.Module):
    """Eight Gaussians on a circle of radius 4."""

    centers: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("centers", torch.tensor(CENTERS))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(-0.5 * (x[:, None] - self.centers).square().sum(-1), 1)


def perceptron(dim: int, width: int) -> nn.Sequential:
    """Two hidden layers with SiLU."""
    return nn.Sequential(
        nn.Linear(dim, width),
        nn.SiLU(),
        nn.Linear(width, width),
        nn.SiLU(),
        nn.Linear(width, 1),
        nn.Flatten(0),
    )


def time_energy() -> SymbolVectorTimeEnergy:
    """LDEBM's residual energy: spectral norms, a time branch, 12 blocks of width 200, d = 40."""
    return SymbolVectorTimeEnergy(ResidualTimeNet(40, 20))


def convolution() -> nn.Sequential:
    """Three strided convolutions on 32×32×3."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.SiLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.SiLU(),
        nn.Conv2d(64, 64, 3, 2, 1),
        nn.SiLU(),
        nn.Flatten(),
        nn.Linear(64 * 16, 1),
        nn.Flatten(0),
    )


class Tied(nn.Module):
    """LDEBM's energy at level t, tied to the noisier state: what a chain of it samples."""

    def __init__(self, energy: SymbolVectorTimeEnergy, noisier: Tensor, t: Tensor) -> None:
        super().__init__()
        self.energy, self.noisier, self.t = energy, noisier, t

    def forward(self, x: Tensor) -> Tensor:
        return self.energy(x, self.t) + 0.5 * (x - self.noisier).square().sum(1)


def proposals(steps: int) -> tuple[int, int]:
    """How many proposals of HMC, of how many leapfrog steps each, make `steps` gradients."""
    return max(1, steps // LEAPFROG), min(steps, LEAPFROG)


def eblvm_runs(
    energy: Callable[[Tensor], Tensor], x: Tensor, steps: int, mode: str = "auto"
) -> Runs:
    """eblvm's kernels, each made when it runs.

    Arguments:
        energy: What they sample.
        x: Where they start.
        steps: Gradients.
        mode: As in :func:`eblvm.samplers.compilation`.
    """

    count, leapfrog = proposals(steps)

    def running(make: Callable[[], Kernel]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            with compilation(mode):
                return make()(energy, x)

        return run

    return {
        "Langevin": running(lambda: Langevin(steps, STEP)),
        "MALA": running(lambda: MALA(steps, STEP)),
        "HMC": running(lambda: HMC(count, STEP, num_leapfrog=leapfrog)),
    }


def _value_and_gradient(energy: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.detach().requires_grad_(True)
    e = energy(y)
    return e.detach(), torch.autograd.grad(e.sum(), y)[0]


def textbook_runs(energy: Callable[[Tensor], Tensor], x: Tensor, steps: int) -> Runs:
    """The kernels as tutorials write them: parameters keep requiring gradients, nothing is kept."""

    def langevin() -> Tensor:
        y = x.clone()
        for _ in range(steps):
            y = y.detach().requires_grad_(True)
            gradient = torch.autograd.grad(energy(y).sum(), y)[0]
            y = y - 0.5 * STEP**2 * gradient + STEP * torch.randn_like(y)
        return y.detach()

    def mala() -> Tensor:
        y = x.clone()
        for _ in range(steps):
            e, g = _value_and_gradient(energy, y)
            proposal = y - 0.5 * STEP**2 * g + STEP * torch.randn_like(y)
            e_new, g_new = _value_and_gradient(energy, proposal)
            there = (proposal - y + 0.5 * STEP**2 * g).flatten(1).square().sum(1)
            back = (y - proposal + 0.5 * STEP**2 * g_new).flatten(1).square().sum(1)
            log_alpha = e - e_new + (there - back) / (2 * STEP**2)
            accept = torch.rand_like(log_alpha).log() < log_alpha
            y = torch.where(accept.reshape(-1, *[1] * (x.ndim - 1)), proposal, y)
        return y

    def hmc() -> Tensor:
        y = x.clone()
        for _ in range(max(1, steps // LEAPFROG)):
            p = torch.randn_like(y)
            e, g = _value_and_gradient(energy, y)
            start, q = e + 0.5 * p.flatten(1).square().sum(1), y
            for _ in range(LEAPFROG):
                p = p - 0.5 * STEP * g
                q = q + STEP * p
                e, g = _value_and_gradient(energy, q)
                p = p - 0.5 * STEP * g
            log_alpha = start - e - 0.5 * p.flatten(1).square().sum(1)
            accept = torch.rand_like(log_alpha).log() < log_alpha
            y = torch.where(accept.reshape(-1, *[1] * (x.ndim - 1)), q, y)
        return y

    return {"Langevin": langevin, "MALA": mala, "HMC": hmc}


def tight_runs(energy: Any, x: Tensor, steps: int) -> Runs:
    """The same, as fast as eager autograd goes: frozen parameters, in place, gradients kept."""
    count, leapfrog = proposals(steps)
    parameters = list(energy.parameters()) if isinstance(energy, nn.Module) else []
    axes, ones = tuple(range(1, x.ndim)), x.new_ones(len(x))
    block = min(steps, 10)

    def freezing(chain: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def run() -> Tensor:
            for p in parameters:
                p.requires_grad_(False)
            z = chain()
            for p in parameters:
                p.requires_grad_(True)
            return z

        return run

    def gradient(y: Tensor) -> tuple[Tensor, Tensor]:
        e = energy(y)
        return e.detach(), torch.autograd.grad(e, y, ones)[0]

    def langevin() -> Tensor:
        y = x.clone().requires_grad_()
        z = y.detach()
        for i in range(steps):
            if i % block == 0:
                noise = torch.randn(block, *x.shape, device=x.device)
            z.add_(gradient(y)[1], alpha=-0.5 * STEP**2).add_(noise[i % block], alpha=STEP)
        return z

    def mala() -> Tensor:
        z, y = x.clone(), x.clone().requires_grad_()
        e, g = gradient(y)
        for i in range(steps):
            if i % block == 0:
                noise = torch.randn(block, *x.shape, device=x.device)
                u = torch.rand(block, len(x), device=x.device).log_()
            n = noise[i % block]
            torch.add(z, g, alpha=-0.5 * STEP**2, out=y.detach()).add_(n, alpha=STEP)
            e_new, g_new = gradient(y)
            # both proposals are s·n and s·n − ½s²(g + g'): only their difference counts
            back = n.sub(g + g_new, alpha=0.5 * STEP)
            log_alpha = e - e_new + 0.5 * (n.square().sum(axes) - back.square().sum(axes))
            accept = u[i % block] < log_alpha
            rows = accept.reshape(-1, *[1] * (x.ndim - 1))
            z = torch.where(rows, y.detach(), z)
            e, g = torch.where(accept, e_new, e), torch.where(rows, g_new, g)
        return z

    def hmc() -> Tensor:
        z, y = x.clone(), x.clone().requires_grad_()
        q = y.detach()
        e, g = gradient(y)
        for _ in range(count):
            p = torch.randn_like(z)
            start = e + 0.5 * p.square().sum(axes)
            q.copy_(z)
            p.sub_(g, alpha=0.5 * STEP)
            for k in range(leapfrog):
                q.add_(p, alpha=STEP)
                e_new, g_new = gradient(y)
                p.sub_(g_new, alpha=STEP if k < leapfrog - 1 else 0.5 * STEP)
            log_alpha = start - e_new - 0.5 * p.square().sum(axes)
            accept = torch.rand_like(log_alpha).log_() < log_alpha
            rows = accept.reshape(-1, *[1] * (x.ndim - 1))
            z = torch.where(rows, q, z)
            e, g = torch.where(accept, e_new, e), torch.where(rows, g_new, g)
        return z

    return {"Langevin": freezing(langevin), "MALA": freezing(mala), "HMC": freezing(hmc)}


def torchebm_runs(energy: Any, x: Tensor, steps: int) -> Runs:
    """torchebm's Langevin and HMC, where it is installed."""
    try:
        from torchebm.core import BaseModel
        from torchebm.samplers import HamiltonianMonteCarlo, LangevinDynamics
    except ImportError as error:
        print(f"torchebm is left out: {error}", file=sys.stderr)
        return {}

    class Wrapped(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.inner = energy

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = Wrapped()
    langevin = LangevinDynamics(model, step_size=STEP**2 / 2, noise_scale=1.0, device=x.device)
    hmc = HamiltonianMonteCarlo(model, STEP, n_leapfrog_steps=LEAPFROG, device=x.device)
    runs: Runs = {"Langevin": lambda: langevin.sample(x=x.clone(), n_steps=steps)}
    if x.ndim == 2:  # its HMC takes vectors only
        runs["HMC"] = lambda: hmc.sample(x=x.clone(), n_steps=max(1, steps // LEAPFROG))
    return runs


def _weights(layers: Any) -> list[tuple[Any, Any]]:
    """Weights and biases as arrays of JAX; a normalized weight is taken as it is."""
    import jax.numpy as jnp

    return [(jnp.array(m.weight.detach()), jnp.array(m.bias.detach())) for m in layers]


def _log_density(name: str, energy: Any) -> Callable[..., Any]:
    """log p of one state and of its row of :func:`_given`, in JAX."""
    import jax
    import jax.numpy as jnp

    centers = jnp.array(CENTERS)
    leaky = lambda h: jax.nn.leaky_relu(h, 0.2)  # noqa: E731
    if name == "double well":
        return lambda x: -jnp.square(jnp.square(x) - 1).sum()
    if name == "mixture":
        return lambda x: jax.nn.logsumexp(-0.5 * jnp.square(x - centers).sum(-1))
    if name == "LDEBM":
        return _ldebm(energy.energy.net, leaky)
    kinds = nn.Conv2d if name == "convolution" else nn.Linear
    layers = _weights(m for m in energy if isinstance(m, kinds))
    if name == "convolution":
        (head,) = _weights(m for m in energy if isinstance(m, nn.Linear))

        def convolved(x: Any) -> Any:
            for w, b in layers:
                x = jax.lax.conv_general_dilated(x[None], w, (2, 2), ((1, 1), (1, 1)))[0]
                x = jax.nn.silu(x + b[:, None, None])
            return -(head[0] @ x.reshape(-1) + head[1])[0]

        return convolved

    def perceptron_density(x: Any) -> Any:
        for w, b in layers[:-1]:
            x = jax.nn.silu(w @ x + b)
        return -(layers[-1][0] @ x + layers[-1][1])[0]

    return perceptron_density


def _given(name: str, energy: Any) -> tuple[Any, ...]:
    """What each row is conditioned on, in JAX: LDEBM's noisier state and time branch."""
    import jax.numpy as jnp

    if name != "LDEBM":
        return ()
    net = energy.energy.net
    branch = net.time(net.table[energy.t]).detach()
    return jnp.array(energy.noisier), jnp.array(branch)


def _ldebm(net: ResidualTimeNet, leaky: Callable[[Any], Any]) -> Callable[..., Any]:
    """LDEBM's energy with weights normalized once and the time branch computed before the chain."""
    import jax
    import jax.numpy as jnp

    latent = _weights([net.latent[0], net.latent[2]])
    (fusion,), blocks, (head,) = (
        _weights([net.fusion]),
        _weights(net.blocks),
        _weights([net.head]),
    )

    def log_density(x: Any, noisier: Any, branch: Any) -> Any:
        h = latent[1][0] @ leaky(latent[0][0] @ x + latent[0][1]) + latent[1][1]
        h = fusion[0] @ leaky(jnp.concatenate([h, branch])) + fusion[1]
        for w, b in blocks:
            h = h + w @ leaky(h) + b
        logits = head[0] @ leaky(h) + head[1]
        return jax.nn.logsumexp(logits) - 0.5 * jnp.square(x - noisier).sum()

    return log_density


def blackjax_runs(name: str, energy: Any, x: Tensor, steps: int) -> Runs:
    """blackjax's SGLD, MALA and HMC under `lax.scan` and `vmap`, where installed; on the CPU."""
    if x.device.type != "cpu":
        return {}
    try:
        import blackjax
        import jax
        import jax.numpy as jnp
    except ImportError as error:
        print(f"blackjax is left out: {error}", file=sys.stderr)
        return {}
    log_density = _log_density(name, energy)
    given = _given(name, energy)
    start = jnp.array(x.numpy())
    key = jax.random.key(0)
    gradient = jax.vmap(jax.grad(log_density))
    sgld = blackjax.sgld(lambda x, _: gradient(x, *given))  # all chains as one state

    @jax.jit
    def langevin(key: Any, x: Any) -> Any:
        def body(x: Any, key: Any) -> Any:
            return sgld.step(key, x, 0, STEP**2 / 2), None

        return jax.lax.scan(body, x, jax.random.split(key, steps))[0]

    def adjusted(make: Callable[[Any], Any], n: int) -> Any:
        def of(row: tuple[Any, ...]) -> Any:
            return make(lambda x: log_density(x, *row))

        @jax.jit
        def chain(key: Any, x: Any) -> Any:
            def body(state: Any, key: Any) -> Any:
                keys = jax.random.split(key, len(x))
                move = jax.vmap(lambda k, s, row: of(row).step(k, s)[0])
                return move(keys, state, given), None

            state = jax.vmap(lambda x, row: of(row).init(x))(x, given)
            return jax.lax.scan(body, state, jax.random.split(key, n))[0].position

        return chain

    mala = adjusted(lambda f: blackjax.mala(f, step_size=STEP**2 / 2), steps)
    mass = jnp.ones(x[0].numel())
    hmc = adjusted(
        lambda f: blackjax.hmc(
            f, step_size=STEP, inverse_mass_matrix=mass, num_integration_steps=LEAPFROG
        ),
        max(1, steps // LEAPFROG),
    )
    return {
        "Langevin": lambda: langevin(key, start).block_until_ready(),
        "MALA": lambda: mala(key, start).block_until_ready(),
        "HMC": lambda: hmc(key, start).block_until_ready(),
    }
