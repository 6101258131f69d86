"""The contenders of the samplers' benchmark sample the same laws: else their times say nothing."""

import math

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from eblvm.benchmarks.speed import contenders
from eblvm.benchmarks.speed.samplers import (
    PRODUCTS,
    RATIOS,
    _row,
    cases,
    first_calls,
    fresh,
    main,
    timed,
)
from eblvm.samplers import frozen
from eblvm.samplers.score import value_and_gradient

NUM = 20_000


def gaussian(x):
    return 0.5 * x.square().sum(1)


@pytest.fixture
def step(monkeypatch):
    monkeypatch.setattr(contenders, "STEP", 0.6)
    torch.manual_seed(0)
    return 0.6


def squares(x):
    """Mean of the squares, and its standard error."""
    values = torch.as_tensor(x).square().flatten()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


def loops(energy, x, steps):
    for make in (contenders.tight_runs, contenders.textbook_runs):
        yield from make(energy, x, steps).items()


def test_the_loops_keep_the_law_of_a_gaussian(step):
    x = torch.randn(NUM, 2)
    for kernel, run in loops(gaussian, x, 40):
        truth = 1 / (1 - step**2 / 4) if kernel == "Langevin" else 1.0  # the unadjusted bias
        mean, se = squares(run())
        assert abs(mean - truth) < 4.5 * se, kernel


def test_the_loops_find_the_double_well(step, monkeypatch):
    monkeypatch.setattr(contenders, "STEP", step / 2)  # its curvature at ±1 is 8
    grid = torch.linspace(-4, 4, 100_001, dtype=torch.float64)
    density = torch.exp(-((grid.square() - 1).square()))
    truth = float((density * grid.square()).sum() / density.sum())
    for kernel, run in loops(contenders.double_well, torch.randn(NUM, 2).sign(), 200):
        if kernel != "Langevin":
            mean, se = squares(run())
            assert abs(mean - truth) < 4.5 * se, kernel


@pytest.mark.filterwarnings("ignore")  # those of the other libraries
def test_torchebm_takes_the_same_steps(step):
    pytest.importorskip("torchebm")
    runs = contenders.torchebm_runs(gaussian, torch.randn(NUM, 2), 40)
    assert set(runs) == {"Langevin", "HMC"}
    mean, se = squares(runs["Langevin"]())
    assert abs(mean - 1 / (1 - step**2 / 4)) < 4.5 * se
    mean, se = squares(runs["HMC"]())
    assert abs(mean - 1) < 4.5 * se


def test_eblvm_agrees_with_the_tight_loop(step, monkeypatch):
    monkeypatch.setattr(contenders, "STEP", step / 2)
    x = torch.randn(NUM, 2).sign()
    tight = contenders.tight_runs(contenders.double_well, x, 60)
    for kernel, run in contenders.eblvm_runs(contenders.double_well, x, 60, "never").items():
        (a, s), (b, t) = squares(run()), squares(tight[kernel]())
        assert abs(a - b) < 4.5 * (s**2 + t**2) ** 0.5, kernel


@pytest.mark.filterwarnings("ignore")  # JAX's own
def test_blackjax_samples_the_same_energies():
    jax = pytest.importorskip("jax")
    pytest.importorskip("blackjax")
    torch.manual_seed(0)
    for name, energy, x, _, _ in cases(torch.device("cpu")):
        with frozen(energy):  # normalized weights hold still
            log_density = contenders._log_density(name, energy)
            given = contenders._given(name, energy)
            e, g = value_and_gradient(energy, x)
        both = jax.jit(jax.vmap(jax.value_and_grad(log_density)))
        ours = [torch.as_tensor(np.asarray(v)) for v in both(x.numpy(), *given)]
        for there, here in zip(ours, (-e, -g), strict=True):  # float32 rounding
            torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-4 * float(here.abs().max()))


@pytest.mark.filterwarnings("ignore")  # JAX's own
def test_blackjax_agrees_with_the_tight_loop(step, monkeypatch):
    pytest.importorskip("blackjax")
    monkeypatch.setattr(contenders, "STEP", step / 2)
    x = torch.randn(NUM // 4, 2).sign()
    tight = contenders.tight_runs(contenders.double_well, x, 60)
    runs = contenders.blackjax_runs("double well", contenders.double_well, x, 60)
    assert runs.keys() == tight.keys()
    for kernel, run in runs.items():
        (a, s), (b, t) = squares(np.asarray(run())), squares(tight[kernel]())
        assert abs(a - b) < 4.5 * (s**2 + t**2) ** 0.5, kernel


def test_times_are_per_step_and_the_least():
    r = timed({"a": lambda: sum(range(20_000))}, 3, 10, torch.device("cpu"))["a"]
    assert 0 < r["cpu"] == r["figure"] < 1e4 and r["spread"] >= 0


def test_a_missing_gpu_is_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "torch sees no CUDA device" in capsys.readouterr().err


class Counting(torch.nn.Module):
    """It knows how often it was called, and the class how often a first call was made."""

    first = 0

    def __init__(self):
        super().__init__()
        self.count = 0

    def forward(self, x):
        Counting.first += self.count == 0
        self.count += 1
        return x.square().sum(1)


@pytest.mark.parametrize("kernel", ["Langevin", "MALA", "HMC"])
def test_first_calls_are_first_calls(kernel, monkeypatch):
    monkeypatch.setattr(Counting, "first", 0)
    energy = Counting()
    r = first_calls(energy, torch.randn(3, 2), kernel, 10, 4, torch.device("cpu"))
    assert Counting.first == 8 and energy.count == 0  # four for either
    assert set(r) == {"eblvm", "tight"} and all(v["figure"] > 0 for v in r.values())
    copied = fresh(gaussian)
    assert copied is not gaussian and copied(torch.ones(1, 2)) == 1


@pytest.mark.parametrize("steps", [1, 2, 5, 10, 20])
@pytest.mark.parametrize("kernel", ["Langevin", "MALA", "HMC"])
def test_short_chains_of_both_take_as_many_gradients(kernel, steps):
    for make in (contenders.eblvm_runs, contenders.tight_runs):
        energy = Counting()
        make(energy, torch.randn(3, 2), steps)[kernel]()
        more = kernel != "Langevin"  # that of the start
        assert energy.count == steps + more, make


def test_the_floor_counts_multiplications_and_additions_twice():
    for name, energy, x, _, _ in cases(torch.device("cpu")):
        counter = FlopCounterMode(display=False)
        with frozen(energy), torch.no_grad(), counter:
            energy(x)
        floor = sum(4 * math.prod(p) for p in PRODUCTS.get(name, ()))
        forward = counter.get_total_flops()
        if name == "LDEBM":  # its time branch is computed once a chain, which the floor leaves out
            assert floor < 2 * forward
        else:  # heads of one column are counted here
            assert floor == pytest.approx(2 * forward, rel=0.03), name


def test_a_row_has_all_columns(monkeypatch):
    one = {"cpu": 2.0, "wall": 3.0, "figure": 2.0, "spread": 0.1}
    row = _row("MLP", "HMC", {"eblvm": one, "textbook": {**one, "figure": 5.0}}, 1.0)
    assert row.count("|") == 2 + 5 + len(RATIOS) + 1 + 1 and "| 2.50 |" in row
