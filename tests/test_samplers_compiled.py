"""Compiled steps: same noise, same states, at most one warning, never for short chains."""

import warnings
from functools import partial

import pytest
import torch
from targets import double_well, mixture, seeded
from torch import nn

from eblvm.samplers import (
    HMC,
    MALA,
    Langevin,
    Underdamped,
    compilation,
    compilation_report,
    compiled,
    kinds,
    noise,
)
from eblvm.samplers.mode import mode as mode_now

KERNELS = [
    Langevin(43, 0.1),
    Langevin(30, 0.1, clip=0.5),
    MALA(30, 0.3),
    HMC(12, 0.2, num_leapfrog=3),
    Underdamped(30, 0.2),
]


@pytest.fixture
def uncompiled(monkeypatch):
    """The machinery around the compiler, with the traced function itself in its place."""
    calls = []

    def identity(function, **settings):
        assert settings == {"fullgraph": True, "dynamic": False}
        calls.append(function)
        return function

    monkeypatch.setattr(torch, "compile", identity)
    monkeypatch.setattr(kinds, "_kinds", {})
    monkeypatch.setattr(compiled, "_warned", [])
    times = iter(range(10**6))  # each measurement takes longer than the last: eager first
    monkeypatch.setattr(compiled, "_least", lambda *a: -next(times))
    return calls


def energies():
    net = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0)).double()
    return [double_well, mixture, net]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{type(k).__name__}{k.num_steps}")
@pytest.mark.parametrize("energy", energies(), ids=["double well", "mixture", "MLP"])
def test_agrees_with_eager_under_the_same_noise(kernel, energy, uncompiled):
    x = torch.randn(9, 2, dtype=torch.float64)
    with compilation("never"):
        eager = kernel(energy, x, seeded())
    assert uncompiled == []
    with compilation("always"):
        torch.testing.assert_close(kernel(energy, x, seeded()), eager, rtol=1e-9, atol=1e-9)
        assert len(uncompiled) == 1
        kernel(energy, x, seeded())  # the same kind: built once
    assert len(uncompiled) == 1
    (line,) = compilation_report()
    assert line["used"] and line["compile_seconds"] >= 0


def test_short_chains_recordings_and_schedules_do_not_compile(uncompiled):
    x = torch.randn(9, 2)
    with compilation("always"):
        Langevin(10, 0.1)(double_well, x)
        Langevin(100, 0.1).run(double_well, x)
        Langevin(40, (0.1,) * 40)(double_well, x)
    assert uncompiled == []


def test_auto_waits_until_enough_time_was_spent(uncompiled, monkeypatch):
    x = torch.randn(9, 2)
    Langevin(100, 0.1)(double_well, x)
    (kind,) = kinds._kinds.values()
    assert kind.spent > 0 and uncompiled == []
    kind.spent = compiled.COMPILE_AFTER
    Langevin(100, 0.1)(lambda x: double_well(x), x)  # another energy has its own account
    assert uncompiled == []
    Langevin(100, 0.2)(double_well, x)  # the step size is an input: the same kind
    assert len(uncompiled) == 1
    for mode in ("never", "auto"):
        with compilation(mode):
            Langevin(100, 0.1)(double_well, x)
    assert len(uncompiled) == 1


def scaled(factor):
    return lambda x: factor * x.square().sum(1)


class Attribute:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, x):
        return self.factor * x.square().sum(1)


def net(width):
    return nn.Sequential(nn.Linear(2, width), nn.SiLU(), nn.Linear(width, 1), nn.Flatten(0))


class Sum(nn.Module):
    def forward(self, x):
        return x.square().sum(1)


ROWS = torch.full((9,), 0.1)
VARIANTS = {
    "leapfrog": [(HMC(40, 0.1, num_leapfrog=n), double_well) for n in (2, 3)],
    "clip": [(Langevin(40, 0.1, clip=c), double_well) for c in (0.5, 1.0)],
    "bounds": [(Langevin(40, 0.1, bounds=(-b, b)), double_well) for b in (1.0, 2.0)],
    "step per row": [(Langevin(40, s), double_well) for s in (0.1, ROWS)],
    "closure": [(Langevin(40, 0.1), scaled(f)) for f in (1.0, 2.0)],
    "partial": [(Langevin(40, 0.1), partial(lambda x, t: t * x.sum(1), t=t)) for t in (1, 2)],
    "attribute": [(Langevin(40, 0.1), Attribute(f)) for f in (1.0, 2.0)],
    "number or switch": [(Langevin(40, 0.1), Attribute(f)) for f in (1, True)],
    "width": [(Langevin(40, 0.1), net(w)) for w in (8, 16)],
    "slope": [(Langevin(40, 0.1), nn.Sequential(nn.LeakyReLU(a), Sum())) for a in (0.1, 0.2)],
}


@pytest.mark.parametrize("name", VARIANTS)
def test_what_the_compiler_specializes_to_is_a_kind_of_its_own(name, uncompiled):
    x = torch.randn(9, 2)
    first, second = VARIANTS[name]
    first[0](first[1], x)
    (kind,) = kinds._kinds.values()
    kind.spent = compiled.COMPILE_AFTER
    second[0](second[1], x)
    assert uncompiled == [] and len(kinds._kinds) == 2  # it has its own account, still small
    for kind in kinds._kinds.values():
        kind.spent = compiled.COMPILE_AFTER
    for kernel, energy in (first, second):
        kernel(energy, x)
    assert len(uncompiled) == len(compilation_report()) == 2
    assert uncompiled[0].__code__ != uncompiled[1].__code__  # no variant of the other


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_compilers_limit_on_variants_is_not_met(uncompiled, monkeypatch):
    real = torch._dynamo.optimize  # all of the compiler but its code generation
    monkeypatch.setattr(torch, "compile", lambda f, **_: real("eager", nopython=True)(f))
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 1)
    monkeypatch.setattr(compiled, "STEPS_PER_CALL", 2)
    x = torch.randn(9, 2)
    with compilation("always"):
        for _ in range(2):
            for factor in (1.0, 2.0):
                Langevin(10, 0.1)(scaled(factor), x)
            for width in (4, 8):
                Langevin(10, 0.1)(net(width), x)
    assert not any(kind.refused for kind in kinds._kinds.values())
    assert len(compilation_report()) == 4


def test_the_same_numbers_in_other_objects_are_one_kind(uncompiled):
    x = torch.randn(9, 2)
    for make in (lambda: scaled(2.0), lambda: Attribute(2.0), lambda: net(8)):
        for _ in range(2):
            Langevin(40, 0.1)(make(), x)
    assert len(kinds._kinds) == 3


def test_numbers_that_keep_changing_are_forgotten_and_lasting_ones_are_not(uncompiled):
    x, lasting = torch.randn(9, 2), scaled(1.0)
    for i in range(50):
        Langevin(20, 0.1)(scaled(2.0 + i), x)
        Langevin(20, 0.1)(lasting, x)
    assert len(kinds._kinds) == kinds.MAX_KINDS and uncompiled == []
    before = [kind for key, kind in kinds._kinds.items() if (float, 1.0) in key[1]]
    before[0].spent = compiled.COMPILE_AFTER
    Langevin(20, 0.1)(lasting, x)
    assert len(uncompiled) == 1
    with compilation("always"), warnings.catch_warnings():
        warnings.simplefilter("error")
        for i in range(20):  # so many are compiled; the rest stays eager without a word
            Langevin(20, 0.1)(scaled(100.0 + i), x)
    assert len(uncompiled) == len(compilation_report()) == kinds.MAX_KINDS


def test_what_is_not_faster_is_not_used(uncompiled, monkeypatch):
    times = iter(range(10))
    monkeypatch.setattr(compiled, "_least", lambda *a: next(times))
    x = torch.randn(9, 2, dtype=torch.float64)
    with compilation("always"):
        out = Langevin(40, 0.1)(double_well, x, seeded())
    assert not compilation_report()[0]["used"]
    with compilation("never"):
        assert torch.equal(out, Langevin(40, 0.1)(double_well, x, seeded()))


def test_a_failure_falls_back_with_one_warning(uncompiled, monkeypatch):
    def broken(function, **settings):
        def call(*args):
            raise OSError("no C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    x = torch.randn(9, 2)
    with compilation("never"):
        expected = Langevin(40, 0.1)(double_well, x, seeded())
    with compilation("always"):
        with pytest.warns(RuntimeWarning, match=r"no C\+\+ compiler.*eager mode") as caught:
            out = Langevin(40, 0.1)(double_well, x, seeded())
        assert len(caught) == 1 and torch.equal(out, expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Langevin(40, 0.1)(double_well, x)
            MALA(40, 0.1)(mixture, x)  # another kind fails too: no second warning


def test_the_mode_is_checked_and_restored():
    with pytest.raises(ValueError, match="mode is 'often'; expected 'auto'"):
        with compilation("often"):
            pass
    with pytest.raises(KeyError):
        with compilation("always"):
            raise KeyError
    assert mode_now() == "auto"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_the_real_compiler_agrees_with_eager_and_follows_new_parameters(monkeypatch):
    monkeypatch.setattr(kinds, "_kinds", {})
    x = torch.randn(64, 2)
    net = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0))
    for energy in (double_well, net):
        for round_ in range(2):
            with compilation("never"):
                eager = Langevin(40, 0.1)(energy, x, seeded())
            with compilation("always"):
                fast = Langevin(40, 0.1)(energy, x, seeded())
            torch.testing.assert_close(fast, eager, rtol=1e-4, atol=1e-5)  # float32 rounding
            if energy is net and round_ == 0:
                with torch.no_grad():
                    net[0].weight.mul_(2)
    assert len(compilation_report()) == 2
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    with compilation("always"):  # fewer steps, another step size: no new graph
        Langevin(25, 0.2)(net, x)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{type(k).__name__}{k.num_steps}")
def test_the_real_compiler_agrees_with_eager_for_every_kernel(kernel, monkeypatch):
    monkeypatch.setattr(kinds, "_kinds", {})
    times = iter(range(10**6))  # the compiled steps are kept, however slow they are here
    monkeypatch.setattr(compiled, "_least", lambda *a: -next(times))
    x = torch.rand(64, 2, dtype=torch.float64, generator=seeded()) - 0.5  # unadjusted chains stay
    for count, energy in enumerate(energies(), 1):
        with compilation("never"):
            eager = kernel(energy, x, seeded())
        with compilation("always"):
            fast = kernel(energy, x, seeded())
        assert eager.isfinite().all()
        torch.testing.assert_close(fast, eager, rtol=1e-9, atol=1e-9)
        report = compilation_report()
        assert len(report) == count and report[-1]["used"] and not report[-1].get("refused")
        assert not torch.equal(fast, x)


def test_the_analytic_gradient_is_compiled_where_it_pays_and_can_be(uncompiled, monkeypatch):
    x, seen = torch.randn(9, 2, dtype=torch.float64), []
    spy = compiled._Read.gradient
    monkeypatch.setattr(compiled._Read, "gradient", lambda s, x: seen.append(1) or spy(s, x))
    net = energies()[2]
    with compilation("always"):
        Langevin(40, 0.1)(double_well, x)
        assert not seen  # reading it would take as long as the chain
        Langevin(40, 0.1)(net, x)
        count = len(seen)
        assert count >= 40
        Langevin(20, 0.1)(net, x)  # too short to be read for eager steps, but compiled already
        assert len(seen) == count + 20
        unreadable = energies()[2]  # of the same kind, but for a hook: it stays eager
        unreadable[0].register_forward_hook(lambda m, args, out: 2 * out)
        with compilation("never"):
            expected = Langevin(40, 0.1)(unreadable, x, seeded())
        assert torch.equal(Langevin(40, 0.1)(unreadable, x, seeded()), expected)
        assert len(seen) == count + 20


def test_an_energy_whose_reading_does_not_compile_is_compiled_itself(uncompiled, monkeypatch):
    def broken(self, x):
        raise RuntimeError("not for compilers")

    monkeypatch.setattr(compiled._Read, "gradient", broken)
    net, x = energies()[2], torch.randn(9, 2, dtype=torch.float64)
    with compilation("never"):
        eager = Langevin(40, 0.1)(net, x, seeded())
    with compilation("always"):
        torch.testing.assert_close(Langevin(40, 0.1)(net, x, seeded()), eager)
    assert compilation_report()[0]["used"]


@pytest.fixture
def graphed(monkeypatch):
    """The machinery around CUDA graphs, on the CPU: a replay does again what the capture did."""
    replays = []

    def capture(body, warm_up, device):
        warm_up()
        body()  # a capture runs nothing, but the buffers must bear it

        def replay():
            replays.append(1)
            body()

        return replay

    monkeypatch.setattr(kinds, "_kinds", {})
    monkeypatch.setattr(compiled, "GRAPHED_ON", ("cpu",))
    monkeypatch.setattr(compiled, "_capture", capture)
    return replays


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{type(k).__name__}{k.num_steps}")
@pytest.mark.parametrize("energy", energies(), ids=["double well", "mixture", "MLP"])
def test_graphs_hand_the_state_on_in_their_buffers(kernel, energy, graphed, monkeypatch):
    monkeypatch.setattr(noise, "NOISE_BLOCK", 9 * 2 * 12)  # blocks that no graph divides: rests
    x = torch.randn(9, 2, dtype=torch.float64)
    copy = x.clone()
    with compilation("never"):
        eager = [kernel(energy, x, seeded(i)) for i in (1, 2)]
    with compilation("always"):
        first = kernel(energy, x, seeded(1))
        second = kernel(energy, first, seeded(2))  # must not write to what the first handed out
        with compilation("never"):
            again = kernel(energy, first, seeded(2))
    torch.testing.assert_close(first, eager[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(second, again, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, copy) and len(graphed) >= 4


@pytest.mark.gpu
@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: f"{type(k).__name__}{k.num_steps}")
@pytest.mark.parametrize("autocast", [False, True])
def test_cuda_graphs_agree_with_eager(kernel, autocast, monkeypatch):
    monkeypatch.setattr(kinds, "_kinds", {})
    x = torch.randn(64, 2, device="cuda", dtype=torch.float32 if autocast else torch.float64)
    generator = torch.Generator("cuda")
    net = energies()[2].to(x)
    for energy in (double_well, net):
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            with compilation("never"):
                eager = kernel(energy, x, generator.manual_seed(1))
            with compilation("always"):
                graphed = kernel(energy, x, generator.manual_seed(1))
                kept = graphed.clone()
                kernel(energy, graphed, generator.manual_seed(2))
        # the same kernels in the same order: equal but for atomics, of which there are none
        torch.testing.assert_close(graphed, eager, rtol=1e-9, atol=1e-9)
        assert torch.equal(graphed, kept)
        assert not any(kind.refused for kind in kinds._kinds.values())


@pytest.mark.gpu
def test_cuda_graphs_follow_new_parameters():
    net = energies()[2].cuda()
    x, generator = torch.randn(64, 2, device="cuda", dtype=torch.float64), torch.Generator("cuda")
    for _ in range(2):
        with compilation("never"):
            eager = Langevin(40, 0.1)(net, x, generator.manual_seed(1))
        with compilation("always"):
            graphed = Langevin(40, 0.1)(net, x, generator.manual_seed(1))
        torch.testing.assert_close(graphed, eager, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            net[0].weight.mul_(2)


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:.*could not be compiled")
def test_an_energy_that_waits_for_the_device_stays_eager(monkeypatch):
    monkeypatch.setattr(kinds, "_kinds", {})
    x, generator = torch.randn(64, 2, device="cuda"), torch.Generator("cuda")

    def waiting(x):
        return double_well(x) * (1.0 if float(x.sum()) < 1e9 else 2.0)

    with compilation("never"):
        eager = Langevin(40, 0.1)(waiting, x, generator.manual_seed(1))
    with compilation("always"):
        torch.testing.assert_close(Langevin(40, 0.1)(waiting, x, generator.manual_seed(1)), eager)
    assert any(kind.refused for kind in kinds._kinds.values())
    assert torch.randn(3, device="cuda").isfinite().all()  # the device is none the worse
