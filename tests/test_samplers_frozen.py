"""A chain leaves the energy as found: flags, modes, buffers, weights, caches."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils import spectral_norm as hook_spectral_norm

from eblvm.samplers import (
    AIS,
    HMC,
    MALA,
    Langevin,
    ParallelTempering,
    Underdamped,
    frozen,
    score,
)
from eblvm.samplers.frozen import MAX_SNAPSHOT, held_modules


class Conditional(nn.Module):
    """Every kind of state that a chain could disturb."""

    def __init__(self):
        super().__init__()
        self.old = hook_spectral_norm(nn.Linear(3, 8))
        self.new = parametrizations.spectral_norm(nn.Linear(8, 8))
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.weight_normed = parametrizations.weight_norm(nn.Linear(8, 1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x, t=0.0):
        self.calls += 1  # in place, whatever the mode
        h = self.drop(self.norm(torch.tanh(self.old(x)) + t))
        return self.weight_normed(torch.tanh(self.new(h))).sum(1) + 0.5 * (x**2).sum(1)

    def energy(self, x):
        return self(x)


class Recovery:
    """An object with `__call__` that holds a module, a tensor and a schedule."""

    def __init__(self, energy, x_next):
        self.energy, self.x_next = energy, x_next

    def __call__(self, x):
        return self.energy(x, 0.3) + ((x - self.x_next) ** 2).sum(1)


class Slotted:
    __slots__ = ("parts",)

    def __init__(self, *parts):
        self.parts = parts

    def __call__(self, x):
        return sum(part(x) for part in self.parts)


GLOBAL = nn.Sequential(nn.Linear(3, 1), nn.Flatten(0))


def through_global(x):
    return GLOBAL(x)


def closure(module):
    return lambda x: module(x) * 2


WRAPPERS = {
    "module": lambda m: m,
    "partial": lambda m: partial(m, t=0.2),
    "partial of a bound method": lambda m: partial(m.forward, t=0.2),
    "bound method": lambda m: m.energy,
    "closure": closure,
    "default argument": lambda m: lambda x, net=m: net(x),
    "object": lambda m: Recovery(m, torch.zeros(1, 3)),
    "slots and a list": lambda m: Slotted(m, closure(m)),
    "nested": lambda m: partial(closure(Recovery(m, torch.zeros(1, 3)))),
}


def snapshot(module):
    return (
        {k: v.clone() for k, v in module.state_dict().items()},
        {k: p.requires_grad for k, p in module.named_parameters()},
        {k: m.training for k, m in module.named_modules()},
        [list(m._forward_pre_hooks) for m in module.modules()],
    )


def assert_same(before, after):
    assert before[1:] == after[1:]
    assert before[0].keys() == after[0].keys()
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name]), name


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
@pytest.mark.parametrize("training", [True, False])
def test_a_chain_leaves_everything_as_found(wrap, training):
    net = Conditional().train(training)
    net.norm.bias.requires_grad_(False)  # a flag that was off stays off
    before = snapshot(net)
    Langevin(3, 0.1)(wrap(net), torch.randn(5, 3))
    assert_same(before, snapshot(net))
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS.keys())
def test_inside_a_chain_every_parameter_is_frozen_and_every_module_evaluates(wrap):
    net = Conditional()
    seen = []
    net.norm.register_forward_hook(
        lambda m, *_: seen.append(
            any(p.requires_grad for p in net.parameters()) or any(k.training for k in net.modules())
        )
    )
    Langevin(2, 0.1)(wrap(net), torch.randn(5, 3))
    assert len(seen) >= 2 and not any(seen)


def test_a_module_named_in_globals_is_found():
    assert held_modules(through_global)[0] is GLOBAL
    assert len(held_modules(lambda x: [through_global(y) for y in x])) == 3  # via a helper


def test_torch_functions_are_not_searched():
    assert held_modules(torch.nn.functional.softplus) == []


def test_everything_is_restored_when_the_energy_raises():
    net = Conditional()
    before = snapshot(net)

    def broken(x):
        net(x)
        raise ArithmeticError("no energy today")

    with pytest.raises(ArithmeticError, match="no energy today"):
        Langevin(3, 0.1)(broken, torch.randn(5, 3))
    assert_same(before, snapshot(net))
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_a_graph_built_before_the_chain_still_reaches_its_parameters():
    net = Conditional().eval()
    x = torch.randn(5, 3)
    loss = net(x).sum()
    Langevin(3, 0.1)(net, x)
    loss.backward()
    reference = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    net(x).sum().backward()
    for g, p in zip(reference, net.parameters(), strict=True):
        assert torch.equal(g, p.grad)


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_chains_run_without_the_callers_gradients(guard):
    net = Conditional()
    x = torch.randn(5, 3)
    expected = Langevin(4, 0.1)(net, x, torch.Generator().manual_seed(1))
    with guard():
        start = x.clone()  # an inference tensor under inference_mode
        got = Langevin(4, 0.1)(net, start, torch.Generator().manual_seed(1))
        s = score(net, start)
    assert torch.equal(expected, got)
    assert not got.is_inference() and not got.requires_grad and s.shape == x.shape


EVERY = {
    "Langevin": Langevin(3, 0.1),
    "MALA": MALA(3, 0.1),
    "HMC": HMC(2, 0.1, num_leapfrog=2),
    "underdamped": Underdamped(3, 0.1),
    "tempering": ParallelTempering(MALA(2, 0.1), (1.0, 2.0), 3),
}


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", EVERY)
def test_every_sampler_runs_and_records_without_the_callers_gradients(name, guard):
    net, x = Conditional(), torch.randn(5, 3)
    before = snapshot(net)
    expected = EVERY[name](net, x, torch.Generator().manual_seed(1))
    with guard():
        start = x.clone()
        got = EVERY[name](net, start, torch.Generator().manual_seed(1))
        chain = EVERY[name].run(net, start, torch.Generator().manual_seed(1))
    assert torch.equal(got, expected) and torch.equal(chain.x, expected)
    for t in (got, chain.trajectory, chain.energies):
        assert not t.is_inference() and not t.requires_grad
    assert_same(before, snapshot(net))


@pytest.mark.parametrize("guard", [torch.no_grad, torch.inference_mode])
def test_annealed_importance_sampling_runs_without_the_callers_gradients(guard):
    net, x, ais = Conditional(), torch.randn(5, 3), AIS(4, MALA(2, 0.1))
    before = snapshot(net)
    for way in (ais.forward, ais.reverse):
        expected = way(net, x, torch.Generator().manual_seed(1))
        with guard():
            got = way(net, x.clone(), torch.Generator().manual_seed(1))
        assert got.value == expected.value and not got.x.is_inference()
        assert not got.log_weights.requires_grad
    assert_same(before, snapshot(net))


@pytest.mark.parametrize("name", EVERY)
def test_every_sampler_honors_autocast(name):
    net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0))
    x = torch.randn(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        low = EVERY[name](net, x, torch.Generator().manual_seed(1))
    high = EVERY[name](net, x, torch.Generator().manual_seed(1))
    assert low.dtype == torch.float32 and not torch.equal(low, high)
    torch.testing.assert_close(low, high, atol=1e-2, rtol=1e-2)  # 8 bits; no rejection is near


def test_tensors_from_inference_mode_inside_an_energy_are_explained():
    with torch.inference_mode():
        w = torch.randn(5, 3)
    with pytest.raises(RuntimeError, match="inference_mode=False"):
        score(lambda x: (x * w).sum(1), torch.randn(5, 3))


def test_rows_are_independent_in_a_chain_on_batch_norm():
    net = Conditional()
    x = torch.randn(6, 3)
    full, half = score(net, x), score(net, x[:3])
    torch.testing.assert_close(full[:3], half)  # batch statistics would mix the rows


def test_spectral_norm_is_that_of_evaluation_and_computed_once():
    net = Conditional().eval()
    x = torch.randn(5, 3)
    expected = torch.autograd.grad(net(y := x.clone().requires_grad_()).sum(), y)[0]
    net.train()
    torch.testing.assert_close(score(net, x), -expected)

    calls = []
    net.new.parametrizations.weight[0].register_forward_hook(lambda *_: calls.append(1))
    Langevin(7, 0.1)(net, x)
    assert len(calls) == 1


def test_an_open_parametrization_cache_keeps_the_callers_graph():
    net = Conditional()
    x = torch.randn(5, 3)
    with parametrize.cached():
        first = net.new.weight
        Langevin(2, 0.1)(net, x)
        assert net.new.weight is first
        net(x).sum().backward()
    assert net.new.parametrizations.weight.original.grad is not None


def test_a_large_buffer_may_be_read_but_not_written():
    net = nn.Linear(3, 1)
    net.register_buffer("replay", torch.zeros(MAX_SNAPSHOT + 1))
    read = lambda x: net(x).sum(1) + net.replay.sum()  # noqa: E731

    def write(x):
        net.replay.add_(1)
        return net(x).sum(1)

    Langevin(2, 0.1)(read, torch.randn(5, 3))
    with pytest.raises(RuntimeError, match=r"\['replay'\].*and they stay changed"):
        Langevin(2, 0.1)(write, torch.randn(5, 3))
    assert (net.replay > 0).all()  # as the message says


def test_loose_leaf_tensors_are_frozen_too():
    w = nn.Parameter(torch.randn(3))
    flags = []

    def energy(x):
        flags.append(w.requires_grad)
        return (w * x**2).sum(1)

    Langevin(2, 0.1)(energy, torch.randn(5, 3))
    assert flags == [False, False] and w.requires_grad and w.grad is None


def test_frozen_contexts_nest():
    net = Conditional()
    before = snapshot(net)
    with frozen(net):
        with frozen((net, net.new)):
            net(torch.randn(2, 3))
        assert not any(p.requires_grad for p in net.parameters())
    assert_same(before, snapshot(net))


def test_a_recurrent_layer_keeps_its_mode():
    net = nn.Sequential(nn.GRU(3, 4))
    with frozen(net):
        assert net[0].training and not net.training


@pytest.mark.parametrize("kind", [nn.GRU, nn.LSTM, nn.RNN])
def test_dropout_between_recurrent_layers_is_off_in_a_chain_and_back_after_it(kind):
    net = kind(3, 4, num_layers=2, dropout=0.9)
    energy = lambda x: net(x[:, None])[0].square().sum((1, 2))  # noqa: E731
    x = torch.randn(50, 3)
    with frozen(energy):
        assert torch.equal(energy(x), energy(x)) and net.training
    assert net.dropout == 0.9 and not torch.equal(energy(x), energy(x))
    with pytest.raises(ArithmeticError), frozen(energy):
        raise ArithmeticError
    assert net.dropout == 0.9
    torch.testing.assert_close(score(energy, x), score(energy, x), rtol=0, atol=0)
