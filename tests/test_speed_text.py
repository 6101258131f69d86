"""The benchmark's plain transcription of the published algorithms, as an oracle of the library."""

import pytest
import torch

from eblvm.benchmarks.speed.text import Sizes, learner, loss_of, plain_loss, sentences, shares
from eblvm.models.networks.spectral import settle_spectral_norms

SMALL = Sizes(
    vocab=30, length=9, width=12, latent_dim=4, num_symbols=5, energy_width=8, num_blocks=2,
    num_steps=20, dropout=0.0,
)  # fmt: skip


def settled(method):
    """A model in double precision whose spectral norms are exact and stay as they are."""
    torch.manual_seed(1)
    model = learner(method, SMALL).double().train()
    settle_spectral_norms(model, 3000)
    model.latent.prior.eval()  # its chains still run; its weights are normalized as stored
    return model


def equally_long(num):
    x, label = sentences(num, SMALL)
    return x.clamp_min(4), label


@pytest.mark.parametrize("method", ["ldebm", "svebm_ib"])
def test_losses_and_gradients_are_those_of_the_transcription(method):
    model, batch = settled(method), equally_long(6)
    found = []
    for function in (loss_of, plain_loss):
        loss = function(model, batch, 3)
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        found.append((loss.detach(), gradients))
    (one, ours), (two, theirs) = found
    assert one == pytest.approx(float(two), rel=1e-9)
    for (name, parameter), a, b in zip(model.named_parameters(), ours, theirs, strict=True):
        size = float(parameter.detach().abs().max())
        assert torch.allclose(a, b, rtol=1e-7, atol=1e-9 * size), name
    assert sum(float(g.abs().sum() > 0) for g in ours) >= len(ours) - 1
    other = loss_of(model, batch, 4)
    assert abs(float(other.detach()) - float(one)) > 1e-3  # another noise, another loss


def test_parts_of_a_step_add_up():
    torch.manual_seed(0)
    model = learner("ldebm", SMALL).train()
    spent = shares(model, sentences(6, SMALL))
    assert {"encoder", "decoder", "chains", "backward", "other"} <= spent.keys()
    assert all(seconds >= 0 for seconds in spent.values())
