"""One training step of DDAEBM on the plane, written out from the paper's equations and code.

Nothing of the library is used: schedule, networks, losses, gradients and Adam stand here in full,
with f = −E as published. It is slow and plain, and there to be compared with.
"""

import math

import torch


def betas(num, low, high, eps=1e-3):
    """β_0 … β_T of the variance-preserving diffusion at times of equal spacing."""
    tau = [eps + (1 - eps) * j / num for j in range(num + 1)]
    abar = [math.exp(-0.5 * u**2 * (high - low) - u * low) for u in tau]
    return [1 - abar[0], *(1 - abar[j] / abar[j - 1] for j in range(1, num + 1))]


class Coefficients:
    """What the diffusion needs, for a batch of k: columns `(B, 1)`."""

    def __init__(self, beta, k):
        beta = torch.tensor(beta, dtype=torch.float64)
        abar = torch.cumprod(1 - beta, 0)
        now, after = abar[k], abar[k + 1]
        self.beta = beta[k + 1][:, None]  # of the step from x_k to x_{k+1}
        self.a = (1 - beta[k + 1]).sqrt()[:, None]
        self.root, self.rest = now.sqrt()[:, None], (1 - now).sqrt()[:, None]
        self.c1 = (beta[k + 1] * now.sqrt() / (1 - after))[:, None]
        self.c2 = ((1 - now) * (1 - beta[k + 1]).sqrt() / (1 - after))[:, None]
        self.var = (beta[k + 1] * (1 - now) / (1 - after))[:, None]


def embedding(k, dim=16):
    rate = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = k[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)


def prelu(x, slope):
    return torch.where(x >= 0, x, slope * x)


def normalize(x, scale, shift):
    """Over the batch, with the biased variance."""
    centered = x - x.mean(0)
    return centered / (centered.square().mean(0) + 1e-5).sqrt() * scale + shift


class Weights:
    """The parameters of a network in the order in which its layers use them."""

    def __init__(self, parameters):
        self.rows = iter(parameters)

    def linear(self, x):
        weight, bias = next(self.rows), next(self.rows)
        return x @ weight.T + bias

    def norm(self, x, norm):
        return normalize(x, next(self.rows), next(self.rows)) if norm else x

    def slope(self, x):
        return prelu(x, next(self.rows))

    def layer(self, x, norm=False):
        return self.slope(self.norm(self.linear(x), norm))

    def net(self, x, k, norm):
        """Time and vector branch, joined, and a trunk of two hidden layers."""
        e = self.layer(self.layer(embedding(k)))
        v = self.layer(self.layer(x, norm), norm)
        h = self.slope(torch.cat([v, e], 1))
        h = self.layer(self.layer(h, norm), norm)
        return self.norm(self.linear(h), norm)


def log_density(theta, x, k):
    """f(x, k) = log of an unnormalized density, `(B,)`; the network is taken to give −f."""
    return -Weights(theta).net(x, k, False)[:, 0]


def generate(phi, y, k, z):
    """The clean datum."""
    return Weights(phi).net(torch.cat([y, z], 1), k, True)


def encode(psi, x, y, k):
    """Mean and log-variance of z."""
    weights = Weights(psi)
    both = weights.linear(weights.net(torch.cat([x, y], 1), k, True))
    half = both.shape[1] // 2
    return both[:, :half], both[:, half:]


def log_step(y, x, c):
    """log q(y|x), constants and all, `(B,)`."""
    d = x.shape[1]
    squares = (y - c.a * x).square().sum(1) / (2 * c.beta[:, 0])
    return -squares - d / 2 * torch.log(2 * math.pi * c.beta[:, 0])


def adam(parameters, gradients, state, lr, b1, b2, eps=1e-8):
    """One step, in place; `state` holds the count and two moments each."""
    state["n"] = n = state.get("n", 0) + 1
    for i, (p, g) in enumerate(zip(parameters, gradients, strict=True)):
        m, v = state.get(i, (torch.zeros_like(p), torch.zeros_like(p)))
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        state[i] = m, v
        step = lr * (m / (1 - b1**n)) / ((v / (1 - b2**n)).sqrt() + eps)
        p.data -= step


class Step:
    """Algorithm and state: one call is one batch."""

    def __init__(
        self, theta, phi, psi, beta, gamma, lam, floor=1e-2, eps=1e-6, total=True, lr=1e-4
    ):
        copies = [[p.detach().clone().requires_grad_() for p in row] for row in (theta, phi, psi)]
        self.theta, self.phi, self.psi = copies
        self.beta, self.gamma, self.lam, self.floor, self.eps = beta, gamma, lam, floor, eps
        self.total, self.lr, self.energy_state, self.generator_state = total, lr, {}, {}

    def __call__(self, data, k, n1, n2, z, n3, n4):
        c = Coefficients(self.beta, k)
        x = (c.root * data + c.rest * n1).requires_grad_()
        y = (c.a * x + c.beta.sqrt() * n2).detach()

        mean = c.c1 * generate(self.phi, y, k, z) + c.c2 * y
        fake = mean + torch.where(k[:, None] > 0, c.var.sqrt(), 0.0) * n3

        f_real = log_density(self.theta, x, k)
        f_fake = log_density(self.theta, fake.detach(), k)
        joint = f_real + log_step(y, x, c) if self.total else f_real
        (gradient,) = torch.autograd.grad(joint.sum(), x, create_graph=True)
        penalty = self.gamma / 2 * gradient.square().sum(1).mean()
        loss_d = f_fake.mean() - f_real.mean() + penalty
        energy_gradients = torch.autograd.grad(loss_d, self.theta)
        self.energy_gradients = energy_gradients
        adam(self.theta, energy_gradients, self.energy_state, self.lr, 0.0, 0.9)

        frozen = [p.detach() for p in self.theta]  # as updated
        x = x.detach()
        adversarial = -(log_density(frozen, fake, k) + log_step(y, fake, c)).mean()
        m, s = encode(self.psi, fake, y, k)
        entropy = (0.5 * s + 0.5 * (z - m).square() / (self.eps + s.exp())).sum(1).mean()
        m, s = encode(self.psi, x, y, k)
        kl = 0.5 * (m.square() + s.exp() - 1 - s).sum(1).mean()
        posterior = m + (0.5 * s).exp() * n4
        made = c.c1 * generate(self.phi, y, k, posterior) + c.c2 * y
        v = c.var.clamp(min=self.floor)
        squares = (x - made).square() / (2 * v) + 0.5 * torch.log(2 * math.pi * v)
        reconstruction = squares.sum(1).mean()
        loss_g = adversarial + self.lam * entropy + kl + reconstruction
        players = [*self.phi, *self.psi]
        player_gradients = torch.autograd.grad(loss_g, players)
        self.player_gradients = player_gradients
        adam(players, player_gradients, self.generator_state, self.lr, 0.0, 0.9)
        return {
            "contrast": loss_d - penalty,
            "penalty": penalty,
            "adversarial": adversarial,
            "entropy": self.lam * entropy,
            "latent_kl": kl,
            "reconstruction": reconstruction,
        }
