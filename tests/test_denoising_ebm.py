"""The learner of few-step diffusions: exact generators, running averages, what it refuses."""

import warnings
from functools import partial

import pytest
import torch
from pytorch_lightning import Callback, Trainer
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

from eblvm.callbacks import CompileNetworks, networks
from eblvm.divergences import GradientPenalty, Jeffrey, NonSaturating, ReverseKL, step_variance
from eblvm.energies import TimeEnergy
from eblvm.models import DenoisingEBM
from eblvm.models.networks import TimedMLPEncoder, TimedMLPEnergy, TimedMLPGenerator
from eblvm.schedules import VariancePreservingSchedule


class Quadratic(TimeEnergy):
    def __init__(self):
        super().__init__()
        self.c = nn.Parameter(torch.tensor(1.0))

    def forward(self, x, t, context=None):
        return 0.5 * self.c * x.square().sum(1)


class Exact(nn.Module):
    """x̂ of data N(0, 1), linear, such that x_t given x_{t+1} has its mean and variance."""

    def __init__(self, schedule):
        super().__init__()
        a, beta = schedule.a[1:], schedule.sigma[1:].square()
        like, t = torch.zeros(len(schedule), 1), torch.arange(len(schedule))
        one, zero = torch.ones_like(like), torch.zeros_like(like)
        c1 = schedule.reverse(one, zero, t).mean[:, 0]
        c2 = schedule.reverse(zero, one, t).mean[:, 0]
        own = step_variance(schedule, t, like)[:, 0]
        self.p = nn.Parameter((a - c2) / c1)  # E[x_t | x_{t+1}] = a x_{t+1}, with variance β
        self.q = nn.Parameter((beta - own).clamp(min=0).sqrt() / c1)

    def forward(self, x_next, t, z):
        return self.p[t, None] * x_next + self.q[t, None] * z


def learner(divergence=None, **settings):
    schedule = VariancePreservingSchedule(4)
    divergence = divergence or ReverseKL(nn.Linear(1, 1))
    rates = {"energy": 1e-3, "generator": 1e-3}
    if list(divergence.parameters()):
        rates["divergence"] = 1e-3
    parts = (Quadratic(), Exact(schedule), schedule, divergence)
    return DenoisingEBM(*parts, 1, [1], rates, **settings)


def test_exact_steps_sample_the_data():
    model = learner(fake_noise_at_zero=True).eval()
    x = model.sample(100_000, torch.Generator().manual_seed(0))
    assert x.shape == (100_000, 1)
    assert abs(float(x.mean())) < 4 / 100_000**0.5
    assert float(x.var()) == pytest.approx(1, abs=4 * (2 / 100_000) ** 0.5)
    assert model.sample(3, trajectory=True).shape == (5, 3, 1)


def test_data_and_fakes_of_exact_steps_are_alike():
    model = learner(fake_noise_at_zero=True)
    jump = model.jump(torch.randn(100_000, 1), torch.Generator().manual_seed(0))
    for t in range(4):
        rows = jump.t == t
        both = [torch.cat([x, jump.x_next], 1)[rows].T.cov() for x in (jump.x, jump.fake.detach())]
        torch.testing.assert_close(*both, rtol=0, atol=0.06)


def test_no_noise_is_added_at_the_last_step():
    model, x, t = learner(), torch.zeros(4, 1), torch.arange(4)
    own = step_variance(model.schedule, t, x).sqrt()
    torch.testing.assert_close(model.noise_scale(x, t), own * (t > 0)[:, None])


def test_running_averages_score_and_sample_in_evaluation_only():
    model = learner(ema_decay=0.9)
    average = model.averaged["energy"]
    for value in (2.0, 4.0):
        model.energy.c.data.fill_(value)
        average.update_parameters(model.energy)
    x = torch.ones(1, 1)
    assert float(model.potential()(x).detach()) == pytest.approx(0.5 * 4.0)
    model.eval()  # begun at the first value: 0.9 · 2 + 0.1 · 4
    assert float(model.potential()(x)) == pytest.approx(0.5 * 2.2)
    assert any(name.startswith("averaged.energy") for name in model.state_dict())


def test_a_discriminator_is_no_density():
    with pytest.raises(TypeError, match="is no density of data"):
        learner(NonSaturating()).potential()
    with pytest.raises(ValueError, match="ema_decay is 2"):
        learner(ema_decay=2)


def test_scores_are_log_densities_of_every_level():
    model = learner().eval()
    model.energy.c.data.fill_(3.0)
    x = torch.tensor([[0.0], [2.0], [-1.0]])
    scores = model.scores(x, torch.Generator().manual_seed(0), num_draws=4000)
    a, rest = model.schedule.a_bar, model.schedule.sigma_bar.square()
    torch.testing.assert_close(scores["energy"], -1.5 * (a[0] * x[:, 0]) ** 2)
    torch.testing.assert_close(scores["gradient_norm"], -3 * (a[0] * x[:, 0]).abs())
    for t in (1, 2, 3):  # E x_t² = ā² x² + σ̄²
        expected = -1.5 * ((a[t] * x[:, 0]) ** 2 + rest[t])
        torch.testing.assert_close(scores[f"energy_{t}"], expected, rtol=0, atol=0.3)
    total = scores["energy"] + sum(scores[f"energy_{t}"] for t in (1, 2, 3))
    torch.testing.assert_close(scores["energy_sum"], total)


def test_a_critic_scores_pairs():
    scores = learner(NonSaturating()).eval().scores(torch.tensor([[0.0], [5.0]]))
    assert list(scores) == ["critic"] and scores["critic"][0] > scores["critic"][1]


def trained(tmp_path, model, num_steps, batches, *callbacks, ckpt_path=None, max_epochs=None):
    """The trainer after so many steps or epochs on these batches, in their order."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "default_root_dir": tmp_path}
    quiet |= {"max_steps": num_steps or -1, "max_epochs": max_epochs}
    run = Trainer(callbacks=list(callbacks), **quiet)
    data = DataLoader([(x, torch.tensor(0)) for x in batches], batch_size=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run.fit(model, data, ckpt_path=ckpt_path)
    return run


def small(penalty=None, **settings):
    """A learner of perceptrons on the plane."""
    torch.manual_seed(0)
    encoder = TimedMLPEncoder(2, 3, hidden_dims=[8])
    parts = (TimedMLPEnergy(2, 0, [8]), TimedMLPGenerator(2, 3, [8]), VariancePreservingSchedule(2))
    rates = {"energy": 1e-2, "generator": 1e-2, "divergence": 1e-2}
    return DenoisingEBM(*parts, Jeffrey(encoder, penalty=penalty), 3, [2], rates, **settings)


BATCHES = torch.randn(6, 5, 2, generator=torch.Generator().manual_seed(1))


def test_training_updates_the_averages(tmp_path):
    model = small(ema_decay=0.9)
    first, seen = {n: p.clone() for n, p in model.energy.named_parameters()}, []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, *more):
            seen.append({n: p.detach().clone() for n, p in pl_module.energy.named_parameters()})

    trained(tmp_path, model, 3, BATCHES, Look())
    for name, average in model.averaged["energy"].module.named_parameters():
        one, two, three = (step[name] for step in seen)
        torch.testing.assert_close(average, 0.9 * (0.9 * one + 0.1 * two) + 0.1 * three)
        if name != "net.trunk.3.bias":  # the last one moves both energies, and has no gradient
            assert not torch.equal(one, first[name])


def test_a_lazy_penalty_comes_back_and_counts_more(tmp_path):
    """At steps 0 and 2 of three with the weight of two, at step 1 not at all."""
    penalty = GradientPenalty(0.5, every=2)
    penalized = []

    class Look(GradientPenalty):
        def __call__(self, energy, x, weight, tie=None):
            penalized.append(weight)
            return super().__call__(energy, x, weight, tie)

    penalty.__class__ = Look
    trained(tmp_path, small(penalty), 3, BATCHES)
    assert penalized == [1.0, 1.0]


def test_a_resumed_run_ends_where_the_whole_one_does(tmp_path):
    """Two optimizers and schedules, averages, and a penalty that is lazy and annealed."""

    def build():
        penalty = GradientPenalty(0.5, every=2, final_weight=0.1, num_steps=5)
        schedule = partial(ExponentialLR, gamma=0.5)
        schedules = {"critic_scheduler": schedule, "player_scheduler": schedule}
        return small(penalty, ema_decay=0.9, **schedules)

    whole, half, resumed = build(), build(), build()
    trained(tmp_path, whole, None, BATCHES[:3], max_epochs=2)
    run = trained(tmp_path, half, None, BATCHES[:3], max_epochs=1)
    run.save_checkpoint(tmp_path / "middle.ckpt")
    middle = {name: value.clone() for name, value in half.state_dict().items()}
    settings = {"ckpt_path": tmp_path / "middle.ckpt", "max_epochs": 2}
    run = trained(tmp_path, resumed, None, BATCHES[:3], **settings)
    assert run.global_step == 6
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert not torch.equal(middle["energy.net.trunk.1.weight"], whole.energy.net.trunk[1].weight)


def test_fakes_of_their_own_for_each_player(tmp_path):
    jumps = []

    class Look(Jeffrey):
        def critic_terms(self, energy, schedule, jump, step):
            jumps.append(jump)
            return super().critic_terms(energy, schedule, jump, step)

        def player_terms(self, energy, schedule, jump, mean, generator=None):
            jumps.append(jump)
            return super().player_terms(energy, schedule, jump, mean, generator)

    for shared in (True, False):
        model = small(shared_fakes=shared)
        model.divergence.__class__ = Look
        trained(tmp_path, model, 1, BATCHES)
        of_critic, of_player = jumps[-2:]
        assert torch.equal(of_critic.fake, of_player.fake) == shared
        assert torch.equal(of_critic.x, of_player.x) == shared


def test_energies_with_a_penalty_are_not_compiled(tmp_path):
    """Compiled code has no second derivatives; all else is compiled, and learns the same."""
    plain, compiled = small(GradientPenalty(0.5)), small(GradientPenalty(0.5))
    left = set(networks(compiled))
    assert compiled.net.net in left or compiled.net in left
    assert not left & set(compiled.energy.modules())
    unpenalized = small()
    assert set(networks(unpenalized)) & set(unpenalized.energy.modules())
    trained(tmp_path, plain, 2, BATCHES)
    trained(tmp_path, compiled, 2, BATCHES, CompileNetworks("aot_eager"))
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, compiled.state_dict()[name], rtol=1e-4, atol=1e-5)
