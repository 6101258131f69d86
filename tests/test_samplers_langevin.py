"""Langevin: the step, its exact bias, and everything a call promises."""

import itertools
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from eblvm.samplers import (
    AIS,
    HMC,
    MALA,
    Chain,
    Langevin,
    ParallelTempering,
    Sampler,
    Underdamped,
    score,
)


def gaussian(variance):
    return lambda x: 0.5 * (x.double() ** 2 / variance).flatten(1).sum(1).to(x.dtype)


def seeded(seed=1):  # not 0: the starts come from the global generator, seeded with 0
    return torch.Generator().manual_seed(seed)


def test_one_step_is_the_formula():
    x = torch.randn(6, 2, 3, dtype=torch.float64)
    eps = torch.randn((1, *x.shape), dtype=x.dtype, generator=seeded(3))[0]
    expected = x - 0.5 * 0.3**2 * x / 4 + 0.7 * 0.3 * eps
    torch.testing.assert_close(
        Langevin(1, 0.3, noise_scale=0.7)(gaussian(4.0), x, seeded(3)), expected
    )


@pytest.mark.parametrize("s", [0.3, 1.0, 1.6])
def test_stationary_variance_has_the_exact_bias(s):
    # σ² / (1 − s²/4σ²); started in its own stationary law, 40 steps on, 200,000 chains.
    variance = torch.tensor([1.0, 4.0], dtype=torch.float64)
    biased = variance / (1 - s**2 / (4 * variance))
    x = torch.randn(200_000, 2, dtype=torch.float64) * biased.sqrt()
    x = Langevin(40, s)(gaussian(variance), x, seeded())
    error = (x.var(0) / biased - 1).abs()
    assert (error < 4.5 * (2 / len(x)) ** 0.5).all()  # 4.5 standard errors of a variance
    if s >= 1:  # and the exact variance is refused: this is not an adjusted chain
        assert abs(x[:, 0].var() / variance[0] - 1) > 0.2


@pytest.mark.parametrize("num_steps", [1, 2, 15])
def test_transient_mean_and_variance_follow_the_linear_recursion(num_steps):
    s, nu, start = 0.5, 0.8, 3.0
    shrink = 1 - s**2 / 2
    mean = start * shrink**num_steps
    variance = (nu * s) ** 2 * sum(shrink ** (2 * i) for i in range(num_steps))
    x = torch.full((200_000, 1), start, dtype=torch.float64)
    x = Langevin(num_steps, s, noise_scale=nu)(gaussian(1.0), x, seeded())
    assert abs(x.mean() - mean) < 4.5 * (variance / len(x)) ** 0.5
    assert abs(x.var() / variance - 1) < 4.5 * (2 / len(x)) ** 0.5


def test_without_noise_it_descends_to_the_mode():
    x = torch.randn(10, 2, dtype=torch.float64)
    values = [gaussian(2.0)(x)]
    for _ in range(5):
        x = Langevin(10, 0.5, noise_scale=0)(gaussian(2.0), x)
        values.append(gaussian(2.0)(x))
    assert all((b < a).all() for a, b in itertools.pairwise(values))


def test_schedules_per_step_and_per_row_equal_chains_run_apart():
    energy, x = gaussian(2.0), torch.randn(4, 3, dtype=torch.float64)
    rows = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    together = Langevin(5, rows, noise_scale=rows * 2)(energy, x, seeded())
    for i, s in enumerate(rows.tolist()):  # same noise, one scalar at a time
        alone = Langevin(5, s, noise_scale=2 * s)(energy, x, seeded())
        torch.testing.assert_close(together[i], alone[i])
    annealed = Langevin(3, (0.3, 0.2, 0.1), noise_scale=[0.0, 0.0, 0.0])(energy, x)
    by_hand = x
    for s in (0.3, 0.2, 0.1):
        by_hand = by_hand + 0.5 * s**2 * score(energy, by_hand)
    torch.testing.assert_close(annealed, by_hand)
    both = Langevin(2, (rows, rows / 2))(energy, x, seeded())
    assert both.shape == x.shape


def test_clip_bounds_each_entry_of_the_gradient():
    x = torch.tensor([[5.0, 0.1, -7.0]])
    moved = Langevin(1, 1.0, noise_scale=0, clip=0.5)(gaussian(1.0), x)
    torch.testing.assert_close(moved, x - 0.5 * torch.tensor([[0.5, 0.1, -0.5]]))


def test_bounds_hold_the_state():
    x = Langevin(20, 1.0, bounds=(-0.5, 0.25))(gaussian(1.0), torch.zeros(50, 2))
    assert x.min() == -0.5 and x.max() == 0.25


@pytest.mark.parametrize("shape", [(7,), (7, 3), (2, 3, 4, 5), (0, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_any_event_shape_batch_and_dtype(shape, dtype):
    energy = lambda x: 0.5 * (x**2).flatten(1).sum(1)  # noqa: E731
    if len(shape) == 1:
        energy = lambda x: 0.5 * x**2  # noqa: E731
    x = torch.randn(shape).to(dtype)
    out = Langevin(3, 0.1)(energy, x)
    assert out.shape == x.shape and out.dtype == dtype and out.isfinite().all()


def test_autocast():
    net = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0))
    x = torch.randn(5, 3)
    with torch.autocast("cpu", torch.bfloat16):
        low = Langevin(3, 0.1)(net, x, seeded())
    high = Langevin(3, 0.1)(net, x, seeded())
    assert low.dtype == torch.float32
    assert not torch.equal(low, high)  # autocast was honored
    torch.testing.assert_close(low, high, atol=1e-3, rtol=1e-2)  # bf16 has 8 bits; steps are small


def test_a_generator_decides_everything_and_the_start_is_untouched():
    x = torch.randn(9, 4)
    copy, state = x.clone(), torch.get_rng_state()
    a = Langevin(50, 0.2)(gaussian(1.0), x, seeded(5))
    b = Langevin(50, 0.2)(gaussian(1.0), x, seeded(5))
    c = Langevin(50, 0.2)(gaussian(1.0), x, seeded(6))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(x, copy) and torch.equal(state, torch.get_rng_state())
    assert not a.requires_grad and a.data_ptr() != x.data_ptr()
    zero = Langevin(0, 0.2)(gaussian(1.0), x)
    assert torch.equal(zero, x) and zero.data_ptr() != x.data_ptr()


def test_the_global_generator_is_used_without_one():
    x = torch.randn(9, 4)
    outs = []
    for _ in range(2):
        torch.manual_seed(3)
        outs.append(Langevin(5, 0.2)(gaussian(1.0), x))
    assert torch.equal(*outs)


def test_ranks_draw_different_noise(monkeypatch):
    dist = torch.distributed
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    outs, streams = [], []
    for rank in (0, 1, 0):
        monkeypatch.setattr(dist, "get_rank", lambda rank=rank: rank)
        torch.manual_seed(0)  # what seed_everything does on every rank
        outs.append(Langevin(5, 0.2)(gaussian(1.0), torch.zeros(100, 2)))
        streams.append(torch.get_rng_state())
    assert torch.equal(outs[0], outs[2])
    correlation = torch.corrcoef(torch.stack([outs[0].flatten(), outs[1].flatten()]))[0, 1]
    assert abs(correlation) < 5 / 200**0.5
    assert torch.equal(streams[0], streams[1])  # the global generators stay in step


def test_run_keeps_the_same_chain():
    x = torch.randn(6, 3, dtype=torch.float64)
    sampler = Langevin(11, 0.4)
    chain = sampler.run(gaussian(2.0), x, seeded(), every=2)
    assert isinstance(chain, Chain) and isinstance(sampler, Sampler)
    assert torch.equal(chain.x, sampler(gaussian(2.0), x, seeded()))
    assert chain.trajectory.shape == (5, 6, 3) and chain.energies.shape == (5, 6)
    torch.testing.assert_close(chain.energies[3], gaussian(2.0)(chain.trajectory[3]))
    every = sampler.run(gaussian(2.0), x, seeded())
    assert torch.equal(every.trajectory[1::2], chain.trajectory)
    assert torch.equal(every.trajectory[-1], every.x) and every.acceptance is None


class LiveBytes(TorchDispatchMode):
    """The peak of the bytes alive in tensors made inside."""

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, tuple | list) else [out]:
            if isinstance(t, torch.Tensor) and id(t.untyped_storage()) not in self.known:
                storage, n = t.untyped_storage(), t.untyped_storage().nbytes()
                key = id(storage)
                self.known.add(key)
                self.live += n
                self.peak = max(self.peak, self.live)

                def gone(key=key, n=n):
                    self.live -= n
                    self.known.discard(key)

                weakref.finalize(storage, gone)
        return out


@pytest.mark.parametrize(
    "run",
    [
        lambda n, x: Langevin(n, 0.1)(gaussian(1.0), x),
        lambda n, x: MALA(n, 0.1)(gaussian(1.0), x),
        lambda n, x: HMC(n, 0.1, num_leapfrog=2)(gaussian(1.0), x),
        lambda n, x: Underdamped(n, 0.1)(gaussian(1.0), x),
        lambda n, x: ParallelTempering(MALA(n // 2, 0.1), (1.0, 2.0), 2)(gaussian(1.0), x),
        lambda n, x: AIS(2, MALA(n // 2, 0.1)).forward(gaussian(1.0), x),
    ],
    ids=["Langevin", "MALA", "HMC", "underdamped", "tempering", "AIS"],
)
def test_memory_does_not_grow_with_the_number_of_steps(run):
    peaks = []
    for num_steps in (200, 1000):
        with LiveBytes() as mode:
            run(num_steps, torch.zeros(2000, 2))
        peaks.append(mode.peak)
    assert peaks[1] <= peaks[0] * 1.01  # the noise block is full in both


def test_memory_does_not_grow_under_autocast():
    # Autocast keeps a cast of whatever requires a gradient, which every state of a chain does.
    net = nn.Sequential(nn.Linear(40, 8), nn.SiLU(), nn.Linear(8, 1), nn.Flatten(0))
    peaks = []
    for num_steps in (20, 100):
        with torch.autocast("cpu", torch.bfloat16), LiveBytes() as mode:
            Langevin(num_steps, 0.1)(net, torch.zeros(500, 40))
            assert torch.is_autocast_cache_enabled()  # as found
        peaks.append(mode.peak)
    assert peaks[1] <= peaks[0] * 1.01


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_steps": -1, "step_size": 0.1}, "num_steps is -1; expected 0 or more"),
        ({"num_steps": 1, "step_size": 0.0}, "step_size is 0.0; expected a positive"),
        ({"num_steps": 1, "step_size": torch.tensor([0.1, -1])}, "step_size is .*positive"),
        ({"num_steps": 3, "step_size": (0.1, 0.2)}, "2 entries for 3 steps"),
        ({"num_steps": 2, "step_size": (0.1, -0.2)}, "step_size is -0.2"),
        ({"num_steps": 1, "step_size": 0.1, "noise_scale": -1}, "noise_scale is -1; expected 0"),
        ({"num_steps": 1, "step_size": 0.1, "clip": 0.0}, "clip is 0.0"),
        ({"num_steps": 1, "step_size": 0.1, "bounds": (1.0, -1.0)}, "low < high"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Langevin(**arguments)


def test_wrong_inputs_are_named():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"returned shape \(4, 1\).*expected \(4,\)"):
        Langevin(1, 0.1)(nn.Linear(3, 1), x)
    with pytest.raises(RuntimeError, match="does not depend on x"):
        Langevin(1, 0.1)(lambda x: x.detach().sum(1), x)
    with pytest.raises(TypeError, match=r"dtype torch.int64"):
        Langevin(1, 0.1)(gaussian(1.0), torch.ones(4, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"shape \(3,\) for a batch of 4"):
        Langevin(1, torch.full((3,), 0.1))(gaussian(1.0), x)
    with pytest.raises(ValueError, match="every is 0"):
        Langevin(1, 0.1).run(gaussian(1.0), x, every=0)
    with pytest.raises(ValueError, match="generator lives on"):
        Langevin(1, 0.1)(gaussian(1.0), x.to("meta"), seeded())
