"""The contenders of the samplers' benchmark sample the same laws: else their times say nothing."""

import pytest
import torch

from eblvm.benchmarks.speed import contenders
from eblvm.benchmarks.speed.samplers import main, timed

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


def test_times_are_per_step_and_the_least():
    r = timed({"a": lambda: sum(range(20_000))}, 3, 10, torch.device("cpu"))["a"]
    assert 0 < r["cpu"] == r["figure"] < 1e4 and r["spread"] >= 0


def test_a_missing_gpu_is_named(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "torch sees no CUDA device" in capsys.readouterr().err
