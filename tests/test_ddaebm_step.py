"""The learner against a plain transcription of the published training step, number by number."""

import math
from functools import partial

import pytest
import torch
from ddaebm_step import Step, betas
from pytorch_lightning import Trainer
from torch.utils.data import DataLoader

from eblvm.divergences import GaussianReconstruction, GradientPenalty, Jeffrey
from eblvm.models import DenoisingEBM
from eblvm.models.networks import TimedMLPEncoder, TimedMLPEnergy, TimedMLPGenerator
from eblvm.schedules import VariancePreservingSchedule

GAMMA, LAMBDA, RATE, BATCH = 0.02, 0.1, 1e-3, 40


@pytest.fixture(autouse=True)
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def learner(noise=(0.01, 0.1), total=True, floor=None):
    """Ours with the published settings, and its transcription at the same parameters."""
    torch.manual_seed(1)
    hidden = (20, 20)
    encoder = TimedMLPEncoder(2, 2, hidden, batch_norm=True)
    penalty = GradientPenalty(GAMMA, total)
    ours = DenoisingEBM(
        TimedMLPEnergy(2, 0, hidden),
        TimedMLPGenerator(2, 2, hidden, batch_norm=True),
        VariancePreservingSchedule(4, *noise),
        Jeffrey(encoder, GaussianReconstruction(), LAMBDA, 1.0, penalty, floor),
        2,
        [2],
        {"energy": RATE, "generator": RATE, "divergence": RATE},
        critic_optimizer=partial(torch.optim.Adam, betas=(0.0, 0.9)),
        player_optimizer=partial(torch.optim.Adam, betas=(0.0, 0.9)),
    )
    with torch.no_grad():  # slopes and scales away from where they start
        for p in ours.parameters():
            p.add_(0.1 * torch.randn_like(p))
    parts = [list(m.parameters()) for m in (ours.energy, ours.net, encoder)]
    eps = 0.0 if floor is None else 1e-6
    return ours, Step(*parts, betas(4, *noise), GAMMA, LAMBDA, eps=eps, total=total, lr=RATE)


def noise(ours, batch_idx=0):
    """The draws of a training step of ours, in their order."""
    jump, rest = ours.generator(batch_idx, 2), ours.generator(batch_idx)
    k = torch.randint(4, (BATCH,), generator=jump)
    draw = [torch.randn(BATCH, 2, generator=jump) for _ in range(4)]
    n1, n2, z, n3 = draw
    return k, n1, n2, z, n3, torch.randn(BATCH, 2, generator=rest)


CASES = [
    ((0.01, 0.1), True, None, 1e-9),
    ((0.1, 20.0), True, None, 1e-9),
    ((0.01, 0.1), False, None, 1e-9),  # the penalty on the energy alone
    ((0.01, 0.1), True, -13.8, 2e-3),  # published: a variance has 1e-6 added; ours has a floor
]


@pytest.mark.parametrize(("betas", "total", "floor", "tolerance"), CASES)
def test_losses_and_gradients(betas, total, floor, tolerance):
    ours, published = learner(betas, total, floor)
    data = torch.randn(BATCH, 2)
    k, *draws = noise(ours)
    jump = ours.jump(data, ours.generator(0, 2))
    theta = [p.detach().clone() for p in ours.energy.parameters()]
    critic = ours.divergence.critic_terms(ours.energy, ours.schedule, jump, 0)
    gradients = torch.autograd.grad(
        sum(t.mean() for t in critic.values()), ours.energy.parameters()
    )
    expected = published(data, k, *draws)
    with torch.no_grad():  # the player meets the energy as updated
        for ours_, theirs in zip(ours.energy.parameters(), published.theta, strict=True):
            ours_.copy_(theirs)
    mean = partial(ours.transition, jump.x_next, jump.t)
    player = ours.divergence.player_terms(ours.energy, ours.schedule, jump, mean, ours.generator(0))
    constants = {  # sums over two dimensions that ours leaves out, or has where they do not
        "adversarial": (torch.log(2 * math.pi * ours.schedule.sigma[k + 1] ** 2)).mean(),
        "entropy": -LAMBDA * math.log(2 * math.pi),
        "reconstruction": math.log(2 * math.pi),
    }
    for name, term in {**critic, **player}.items():
        found = term.mean() + constants.get(name, 0.0)
        torch.testing.assert_close(found, expected[name], rtol=tolerance, atol=tolerance)
    parameters = [*ours.net.parameters(), *ours.divergence.parameters()]
    moves = torch.autograd.grad(sum(t.mean() for t in player.values()), parameters)
    for mine, theirs in [
        *zip(gradients, published.energy_gradients, strict=True),
        *zip(moves, published.player_gradients, strict=True),
    ]:
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    assert any(not torch.equal(a, b) for a, b in zip(theta, published.theta, strict=True))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*no `val_dataloader`")
def test_three_steps_of_the_trainer(tmp_path):
    """Who moves when, on which fakes, against which energy: parameters after three batches."""
    ours, published = learner()
    data = torch.randn(3, BATCH, 2)
    for i in range(3):
        published(data[i], *noise(ours, i))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(ours, DataLoader([(row, 0) for row in data.flatten(0, 1)], batch_size=BATCH))
    expected = [*published.theta, *published.phi, *published.psi]
    for mine, theirs in zip(ours.parameters(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-8)
