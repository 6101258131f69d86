"""The analytic gradient equals autograd's, and steps aside where it could not."""

import gc
import itertools
import math
import weakref
from functools import partial

import pytest
import torch
from targets import double_well, mixture, seeded, two_moons
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from eblvm.energies import GaussianEnergy, MixtureEnergy, TiltedEnergy
from eblvm.samplers import (
    HMC,
    MALA,
    Langevin,
    analytic,
    compilation,
    frozen,
    potential,
    products,
)
from eblvm.samplers.buffers import Plan
from eblvm.samplers.score import value_and_gradient

ACTIVATIONS = [
    nn.SiLU(),
    nn.ReLU(),
    nn.LeakyReLU(0.2),
    nn.GELU(),
    nn.GELU(approximate="tanh"),
    nn.Tanh(),
    nn.Sigmoid(),
    nn.Softplus(2.0),
]


def mlp(activation, *widths, bias=True):
    layers = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias), activation]
    return nn.Sequential(*layers[:-1], nn.Flatten(0)).double()


class ResidualTimeEnergy(nn.Module):
    """LDEBM's shape: spectral norms, a time branch, concatenation, residual blocks, logsumexp."""

    def __init__(self, dim=5, width=12, classes=4):
        super().__init__()
        linear = lambda a, b: parametrizations.spectral_norm(nn.Linear(a, b))  # noqa: E731
        self.latent = nn.Sequential(linear(dim, width), nn.LeakyReLU(0.2), linear(width, width))
        self.time = nn.Sequential(linear(width, width), nn.LeakyReLU(0.2), linear(width, width))
        self.fusion = linear(2 * width, width)
        self.blocks = nn.ModuleList([linear(width, width) for _ in range(3)])
        self.head = linear(width, classes)
        self.register_buffer("table", torch.randn(6, width))

    def forward(self, x, t):
        h = torch.cat([self.latent(x), self.time(self.table[t])], dim=-1)
        h = self.fusion(F.leaky_relu(h, 0.2))
        for block in self.blocks:
            h = h + block(F.leaky_relu(h, 0.2))
        return -torch.logsumexp(self.head(F.leaky_relu(h, 0.2)), dim=1)


class Recovery:
    def __init__(self, energy, x_next, t, scale):
        self.energy, self.x_next, self.t, self.scale = energy, x_next, t, scale

    def __call__(self, x):
        d = (0.9 * x - self.x_next) / self.scale[:, None]
        return self.energy(x, self.t) / self.scale + 0.5 * d.pow(2).flatten(1).sum(1)


def time_energy(dim=5):
    net = ResidualTimeEnergy(dim).double()
    return Recovery(
        net, torch.randn(7, dim).double(), torch.arange(7) % 6, torch.rand(7).double() + 0.5
    )


class NormalizedHead(nn.Module):
    """It asks for a normalized weight without calling the layer."""

    def __init__(self):
        super().__init__()
        self.layer = parametrizations.spectral_norm(nn.Linear(5, 1)).double()

    def forward(self, x):
        return F.linear(x.tanh(), self.layer.weight).squeeze(1)


def scaled_tanh(net):
    return lambda x: 3 * torch.tanh(net(x) / 3) + 0.5 * (x * x).sum(-1)


def quadratic(x):
    return (2 - x).square().mean(1) + (x[:, :2] * x[..., 2:4]).sum(dim=1) - x.select(1, 0).exp()


ENERGIES = {
    **{f"MLP {a}": mlp(a, 5, 9, 8, 1) for a in ACTIVATIONS},
    "no bias": mlp(nn.SiLU(), 5, 9, 1, bias=False),
    "residual time energy": time_energy(),
    "partial": partial(ResidualTimeEnergy().double(), t=torch.arange(7) % 6),
    "bounded": scaled_tanh(mlp(nn.GELU(), 5, 9, 1)),
    "double well": double_well,
    "mixture": MixtureEnergy(torch.randn(8, 5, generator=seeded()).double(), 0.7),
    "gaussian": GaussianEnergy(torch.zeros(5).double(), 2 * torch.eye(5).double()),
    "tilted": TiltedEnergy(mlp(nn.Tanh(), 5, 9, 1), GaussianEnergy(torch.zeros(5).double())),
    "quadratic": quadratic,
    "shapes": lambda x: x.square().sum(1) / (len(x) + x.shape[1] + x.size(0) * x.dim()),
    "operators": lambda x: (
        1 + 2 * x[:, 0] - (1 - x[:, 1]) ** 2 + (-x @ torch.eye(5).double()).sum(1)
    ),
    "a weight that is normalized": NormalizedHead(),
    "layers of all kinds": nn.Sequential(
        *[nn.Linear(5, 4), nn.Dropout(0.5), nn.Identity(), nn.Tanh()],
        *[nn.Flatten(), nn.Linear(4, 1), nn.Flatten(0)],
    ).double(),
}


@pytest.mark.parametrize("name", ENERGIES)
def test_equal_to_autograd(name):
    energy = ENERGIES[name]
    x = torch.randn(7, 5, dtype=torch.float64)
    with frozen(energy):
        program = analytic.analyze(energy, x, 1000)
        assert program is not None, "left to autograd"
        for _ in range(3):  # the buffers are reused: later calls must not remember earlier ones
            x = torch.randn(7, 5, dtype=torch.float64)
            e, g = value_and_gradient(energy, x)
            ours_e, ours_g = program(x)
            torch.testing.assert_close(ours_e, e, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(ours_g, g, rtol=1e-9, atol=1e-10)
            torch.testing.assert_close(program.gradient(x), g, rtol=1e-9, atol=1e-10)


def convolutional(channels):
    """Strided filters, uneven padding, a grouped layer, a head over the whole map."""
    return nn.Sequential(
        nn.Conv2d(channels, 6, 4, 2, 1),
        nn.SiLU(),
        Padded(),
        nn.Conv2d(6, 8, 3, 2, groups=2),
        nn.LeakyReLU(0.2),
        nn.Conv2d(8, 5, (3, 3)),
        nn.Flatten(),
    ).double()


class Padded(nn.Module):
    def forward(self, x):
        return F.pad(x, (0, 1, 0, 1))


class Conditional(nn.Module):
    """Constant channels beside the image, as a conditional energy has them."""

    def __init__(self, net, map):
        super().__init__()
        self.net, self.map = net, map

    def forward(self, x):
        return self.net(torch.cat([x, torch.tanh(self.map)], 1))


def summed(net):
    return lambda x: net(x).sum(1)


IMAGES = {
    **{f"{c} channels": summed(convolutional(c)) for c in (1, 3, 5)},
    "channels last": summed(convolutional(1).to(memory_format=torch.channels_last)),
    "map beside": summed(Conditional(convolutional(3), torch.randn(7, 2, 12, 12).double())),
    "flat map beside": summed(
        Conditional(
            nn.Sequential(nn.Flatten(), nn.Linear(288, 9), nn.SiLU(), nn.Linear(9, 1)).double(),
            torch.randn(7, 1, 12, 12).double(),
        )
    ),
}


@pytest.mark.parametrize("name", IMAGES)
def test_gradients_of_convolutions_equal_autograd(name):
    energy = IMAGES[name]
    channels = int(name[0]) if name[0].isdigit() else 1
    x = torch.randn(7, channels, 12, 12, dtype=torch.float64)
    with frozen(energy):
        program = analytic.analyze(energy, x, 1000)
        assert program is not None, "left to autograd"
        for _ in range(2):
            x = torch.randn_like(x)
            e, g = value_and_gradient(energy, x)
            torch.testing.assert_close(program(x)[0], e, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(program.gradient(x), g, rtol=1e-9, atol=1e-10)


def test_a_linear_head_over_a_map_costs_the_gradient_nothing():
    energy = summed(convolutional(1))
    x = torch.randn(7, 1, 12, 12, dtype=torch.float64)
    program = analytic.analyze(energy, x, 1000)
    assert len(program.shorter) == len(program.forward) - 4  # activation, head, flatten, sum


def twice(x):
    h = x.flatten(1)
    return torch.tanh(h.tanh() + h.square()).sum(1)


SURVIVE = {
    "plain": ENERGIES["MLP SiLU()"],
    "the gradient is a view": nn.Sequential(nn.Flatten(), *ENERGIES["MLP SiLU()"]),
    "the value is a view": nn.Sequential(mlp(nn.SiLU(), 5, 9, 1)[:-1], nn.Tanh(), nn.Flatten(0)),
    "the gradient is a view of a sum": twice,
    "the gradient is a sum": lambda x: torch.tanh(x.tanh() + x.square()).flatten(1).sum(1),
}


@pytest.mark.parametrize("name", SURVIVE)
def test_results_survive_the_next_call(name):
    energy, x = SURVIVE[name], torch.randn(7, 5, dtype=torch.float64)
    x = x[..., None] if name != "plain" and name != "the value is a view" else x
    program = analytic.analyze(energy, x, 1000)
    assert program is not None
    e, g = program(x + 1)  # not the start, whose results are autograd's
    kept = e.clone(), g.clone()
    torch.testing.assert_close((e, g), value_and_gradient(energy, x + 1))
    program(x + 2)
    alone = program.gradient(x + 3)
    copy = alone.clone()
    program.gradient(x + 4)
    assert torch.equal(e, kept[0]) and torch.equal(g, kept[1]) and torch.equal(alone, copy)


@pytest.mark.parametrize("seed", range(20))
def test_no_two_living_results_share_a_buffer(seed):
    # A random program with views; lives found by brute force: a result lives until the last call
    # that reads it, or reads something that was made of it through views.
    generator = seeded(seed)
    plan, like, num = Plan(), [torch.empty(2), torch.empty(3)], 40
    calls = []
    for i in range(num):
        reads = torch.randint(max(i, 1), (2,), generator=generator).tolist() if i else []
        shape = int(torch.randint(2, (), generator=generator))
        view = i > 0 and float(torch.rand((), generator=generator)) < 0.3
        plan.call(i, reads, None if view else like[shape])
        calls.append((reads, view))
    plan.keep(num - 1)
    buffers = plan.buffers()

    def life(i):
        seen, last = {i}, i
        for j in range(num):
            reads, view = calls[j]
            if seen & set(reads):
                last = j
                seen |= {j} if view else set()
        return last, num - 1 in seen

    owners = {}
    for i, buffer in enumerate(buffers):
        last, handed_out = life(i)
        if calls[i][1] or handed_out:
            assert buffer is None
        elif buffer is not None:
            for j, until in owners.get(id(buffer), []):
                assert until < i, (j, i)
            owners.setdefault(id(buffer), []).append((i, last))
    assert len(owners) < sum(b is not None for b in buffers)  # and some do share


@pytest.mark.parametrize(
    "kernel", [Langevin(40, 0.1), MALA(40, 0.3), HMC(15, 0.1, num_leapfrog=3)], ids=lambda k: str(k)
)
@pytest.mark.parametrize("name", ["MLP SiLU()", "residual time energy"])
def test_chains_agree_with_eager_under_the_same_noise(kernel, name, monkeypatch):
    energy, x = ENERGIES[name], torch.randn(7, 5, dtype=torch.float64)
    fast = kernel(energy, x, seeded())
    monkeypatch.setattr(potential, "ANALYZE_FROM", 10**9)
    torch.testing.assert_close(fast, kernel(energy, x, seeded()), rtol=1e-8, atol=1e-8)


def test_the_time_branch_is_computed_once():
    energy, x = time_energy(), torch.randn(7, 5, dtype=torch.float64)
    calls = []
    energy.energy.time[1].forward = lambda h: calls.append(1) or F.leaky_relu(h, 0.2)
    Langevin(100, 0.1)(energy, x)
    assert len(calls) <= 2  # once read, once in the check against autograd


def hooked():
    net = mlp(nn.SiLU(), 5, 4, 1)
    net[0].register_forward_hook(lambda m, a, out: out * 2)
    return net


def mutable():
    calls = []

    def energy(x):
        calls.append(1)
        return x.square().sum(1) * len(calls)

    return energy


class Scaled(nn.Module):
    """β ‖x − m‖² / 2, with β and m wherever an energy can keep them."""

    number, table = 1.0, {"beta": 1.0}

    def __init__(self):
        super().__init__()
        self.center = torch.zeros(7, 1).double()
        self.register_buffer("scale", torch.ones(()).double())
        self.weight = nn.Parameter(torch.ones(1, 1).double())

    def forward(self, x):
        d = F.linear(x - self.center, self.weight) * self.number
        return self.scale.item() * self.table["beta"] * GLOBAL * 0.5 * d.square().sum(1)


GLOBAL = 1.0


CHANGES = {
    "an attribute": lambda e, patch: setattr(e, "number", 5.0),
    "a class attribute": lambda e, patch: patch.setattr(Scaled, "number", 5.0),
    "an entry": lambda e, patch: patch.setitem(Scaled.table, "beta", 25.0),
    "a global": lambda e, patch: patch.setitem(globals(), "GLOBAL", 25.0),
    "a tensor": lambda e, patch: setattr(e, "center", e.center + (e.center == 0)),
    "a number in a tensor": lambda e, patch: e.scale.fill_(25.0),
    "a weight": lambda e, patch: e.weight.data.fill_(5.0),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("wrap", [lambda e: e, lambda e: lambda x: e(x)], ids=["module", "closure"])
def test_a_second_chain_samples_the_energy_as_it_is_by_then(change, wrap, monkeypatch):
    # the start is a mode of both energies, where their gradients are equal: 0
    module = Scaled()
    if change == "a tensor":
        module.center[0] = 1e14  # a row that must not hide the others
    energy, x = wrap(module), torch.zeros(7, 1).double()
    before = HMC(20, 0.2, num_leapfrog=8)(energy, x, seeded())
    CHANGES[change](module, monkeypatch)
    after = HMC(20, 0.2, num_leapfrog=8)(energy, x, seeded())
    monkeypatch.setattr(potential, "ANALYZE_FROM", 10**9)
    truth = HMC(20, 0.2, num_leapfrog=8)(energy, x, seeded())
    torch.testing.assert_close(after, truth)
    assert (after - before)[1:].abs().min() > 1e-3


def test_a_huge_row_does_not_hide_the_others():
    calls = []

    def moving(x):  # another density at each call: the trace is that of the first
        calls.append(1)
        m = torch.full((7, 5), float(len(calls))).double()
        m[0] = 1e14
        return 0.5 * (x - m).square().sum(1)

    assert analytic.analyze(moving, torch.zeros(7, 5).double(), 1000) is None
    g = torch.tensor([[1e14, 0.0], [1.0, 2.0], [1e-9, 0.0], [0.5, 1.0]]).double()
    rounding = 1e-12 * torch.tensor([[1e14], [1.0], [1.0], [1.0]]).double()
    assert analytic._agree(g + rounding, g)
    for row in range(4):
        wrong = g.clone()
        wrong[row] += 1e-9 * (1 + g[row].norm())
        assert not analytic._agree(wrong, g), row
    assert not analytic._agree(g * math.nan, g * math.nan)


def test_a_start_at_the_mode_of_all_rows_is_no_proof():
    def held(x):
        with torch.no_grad():  # which the gradient of the formula does not know of
            y = x.clone()
        return (x * y).sum(1)

    def strict(x):
        if isinstance(x, torch.Tensor) and x.abs().max() > 0.5:
            raise ValueError
        return x.square().sum(1)

    zeros = torch.zeros(7, 5).double()
    assert analytic.analyze(held, zeros, 1000) is None
    assert analytic.analyze(strict, zeros, 1000) is None
    program = analytic.analyze(quadratic_at_zero, zeros, 1000)
    assert program is not None
    torch.testing.assert_close(program(zeros)[1], zeros)


def quadratic_at_zero(x):
    return x.square().sum(1)


def test_reading_an_energy_does_not_keep_it_alive():
    for make in (lambda: mlp(nn.SiLU(), 5, 4, 1), lambda: scaled_tanh(mlp(nn.SiLU(), 5, 4, 1))):
        energy = make()
        assert analytic.analyze(energy, torch.randn(7, 5).double(), 1000) is not None
        gone = weakref.ref(energy)
        del energy
        gc.collect()
        assert gone() is None


def compiled_net():
    net = mlp(nn.SiLU(), 5, 4, 1)
    net.compile(backend="eager")
    return net


LEFT_TO_AUTOGRAD = {
    "hook": hooked(),
    "branch": lambda x: x.square().sum(1) if x.sum() > 0 else x.abs().sum(1),
    "in place": lambda x: x.clone().mul_(2).square().sum(1),
    "a number of x": lambda x: x.square().sum(1) * float(x[0, 0].detach()),
    "a flag of x": lambda x: x.square().sum(1) * (1 + x.requires_grad),
    "equality": lambda x: x.square().sum(1) if x.sum() == 0 else x.abs().sum(1),
    "a loop over x": lambda x: sum(row.square() for row in x.T),
    "compiled": compiled_net(),
    "unknown": lambda x: torch.special.erf(x).sum(1),
    "random": lambda x: (x + torch.randn(5)).square().sum(1),
    "not a function of x alone": mutable(),
    "all rows": lambda x: x.square().sum(1) + x.sum(),
    "repeated index": lambda x: x[:, [0, 0, 1]].sum(1),
    "convolution": nn.Sequential(
        nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 1, 5), nn.Flatten(0)
    ).double(),
    "reversed division": lambda x: (1 / (2 + x.square())).sum(1),
    "dropout": nn.Sequential(nn.Linear(5, 1), nn.Dropout(0.5), nn.Flatten(0)).double(),
}


@pytest.mark.parametrize("name", LEFT_TO_AUTOGRAD)
def test_left_to_autograd(name):
    x = torch.randn(7, 5, dtype=torch.float64)
    assert analytic.analyze(LEFT_TO_AUTOGRAD[name], x, 1000) is None
    assert Langevin(40, 0.01)(LEFT_TO_AUTOGRAD[name], x).isfinite().all()


def test_other_dtypes_autocast_and_empty_batches_are_left_to_autograd():
    energy, x = mlp(nn.SiLU(), 5, 4, 1).float(), torch.randn(7, 5)
    assert analytic.analyze(energy, x, 1000) is not None
    assert analytic.analyze(energy, x[:0], 1000) is None
    assert analytic.analyze(energy.bfloat16(), x.bfloat16(), 1000) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert analytic.analyze(energy.float(), x, 1000) is None


def test_packed_products_equal_plain_ones(monkeypatch):
    w, b, h = torch.randn(16, 8), torch.randn(16), torch.randn(32, 8)
    packed = products._packed(w, 32, b)
    if packed is None:
        pytest.skip("this build of torch has no packed product")
    torch.testing.assert_close(packed(h), h @ w.T + b, rtol=1e-4, atol=1e-4)
    for winner in (False, True):  # whichever is measured to be faster, the chain is the same
        monkeypatch.setattr(products, "_packing_wins", {})
        monkeypatch.setattr(
            products, "_seconds", lambda f, h, w=winner: (f.__name__ == "plain") == w
        )
        energy, x = mlp(nn.SiLU(), 8, 16, 16, 1).float(), torch.randn(32, 8)
        program = analytic.analyze(energy, x, 1000)
        assert set(products._packing_wins.values()) == {winner}
        torch.testing.assert_close(
            program(x)[1], value_and_gradient(energy, x)[1], rtol=1e-3, atol=1e-5
        )
    assert products._packed(w.double(), 32, None) is None


def test_what_is_timed_draws_no_noise_and_never_means_never(monkeypatch):
    def seconds(product, h, repeats=7):
        timed.append(product)
        return float(product.__name__ == "plain")

    timed = []
    monkeypatch.setattr(products, "_seconds", seconds)
    monkeypatch.setattr(products, "_packing_wins", {})
    energy, x = mlp(nn.SiLU(), 8, 16, 16, 1).float(), torch.randn(32, 8)
    state = torch.get_rng_state()
    with compilation("never"):
        Langevin(200, 0.1)(energy, x, seeded())
    assert not timed
    Langevin(200, 0.1)(energy, x, seeded())
    assert timed or products._packed(torch.ones(16, 8), 32, None) is None
    assert torch.equal(state, torch.get_rng_state())


def test_known_targets_are_read():
    for energy in (double_well, two_moons, mixture):
        x = torch.randn(7, 2, dtype=torch.float64)
        program = analytic.analyze(energy, x, 1000)
        if energy is double_well:
            assert program is not None
        if program is not None:
            torch.testing.assert_close(program(x)[1], value_and_gradient(energy, x)[1])
    assert math.isfinite(float(double_well(x).sum()))


class Forked(nn.Module):
    """SiLU of a concatenation of two branches, one of them used twice."""

    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 6), nn.Linear(3, 4), nn.Linear(10, 1)

    def forward(self, x):
        u = F.silu(self.left(x))
        return self.head(F.silu(torch.cat([u, self.right(x)], dim=1))).squeeze(1) + u.sum(1)


@pytest.mark.parametrize("dim", [1, 2, 8, 9])
def test_what_an_activation_keeps_is_its_own(dim):
    # two SiLUs of one call keep their own sigmoids, and narrow products take another route
    energy, x = Forked().double(), torch.randn(5, 3, dtype=torch.float64)
    program = analytic.analyze(energy, x, 100)
    assert program is not None
    narrow = mlp(nn.SiLU(), dim, 12, 12, 1)
    second = analytic.analyze(narrow, torch.randn(6, dim).double(), 100)
    for _ in range(3):
        x = torch.randn(5, 3, dtype=torch.float64)
        torch.testing.assert_close(program(x), value_and_gradient(energy, x))
        y = torch.randn(6, dim, dtype=torch.float64)
        torch.testing.assert_close(second(y), value_and_gradient(narrow, y))
