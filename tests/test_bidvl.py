"""BiDVL: the cancellation, the frozen encoder, and what the game converges to."""

import numpy as np
import pytest
import torch
from bidvl_parts import SIGNS, exact_noise, game, strided
from pytorch_lightning import Trainer
from scipy.optimize import root
from torch.utils.data import DataLoader, TensorDataset

from eblvm.models import BiDVL
from eblvm.models.networks import StridedEnergy
from eblvm.objectives import (
    ForwardDivergence,
    GaussianCycle,
    ReverseDivergence,
    SquaredCycle,
    SymmetricDivergence,
    contrastive_divergence,
    hinge,
)
from eblvm.objectives.divergence import density_ratio

NAMES = ("energy", "likelihood", "posterior")


def gradients(learner, x):
    """d L_UL/dk and d L_LL/d(g, m, log t) through the learner's own terms, as the loop does."""
    batch, generator = (x, None), torch.Generator()
    learner.zero_grad()
    with learner.frozen(learner.player()):
        terms = learner.critic_terms(batch, generator, 0)
        sum(t.mean() for t in terms.values()).backward()
    assert all(p.grad is None for m in learner.player().values() for p in m.parameters())
    upper = learner.energy.value.grad.clone()
    with learner.frozen(learner.critic()):
        terms = learner.player_terms(batch, generator, 0)
        sum(t.mean() for t in terms.values()).backward()
    assert torch.equal(learner.energy.value.grad, upper)  # the lower level leaves E alone
    values = [upper, learner.latent.likelihood.decoder.value.grad]
    return torch.cat([*values, learner.latent.posterior.encoder.value.grad])


def fixed_point(learner, x):
    parameters = [
        learner.energy.value,
        learner.latent.likelihood.decoder.value,
        learner.latent.posterior.encoder.value,
    ]

    def field(numbers):
        new = torch.from_numpy(np.asarray(numbers)).split([1, 1, 2])
        with torch.no_grad():
            for parameter, value in zip(parameters, new, strict=True):
                parameter.copy_(value)
        return gradients(learner, x).numpy()

    start = torch.cat(parameters).detach().numpy()
    found = root(field, start, tol=1e-13)
    assert np.abs(found.fun).max() < 1e-9, found.message
    return found.x


@pytest.mark.parametrize(
    ("variance", "weight", "factor", "curvature"),
    [
        (1.0, 1.0, 0.05, (0.43333333333, 1.0, 1.0)),
        (1.0, 0.01, 0.05, (-0.00666666667, 0.01, 1.0)),
        (2.0, 0.5, 0.2, (0.064, 0.125, 0.5)),
    ],
)
class TestFixedPoints:
    """π = N(0, s²), E = k v²/2, v̂ = g h (+ noise of variance ½), q = N(m v, t)."""

    def test_a_deterministic_generator_gets_its_curvature_from_the_regularizers(
        self, monkeypatch, variance, weight, factor, curvature
    ):
        exact_noise(monkeypatch)
        s = variance**0.5
        learner = game(g=0.9 * s, lower=SymmetricDivergence(factor), cycle=SquaredCycle(weight))
        k, g, m, log_t = fixed_point(learner, s * SIGNS)
        assert abs(g) == pytest.approx(s, abs=1e-7)
        assert k == pytest.approx((4 * weight - 2 * factor) / (1 + 2 * variance) ** 2, abs=1e-7)
        assert k == pytest.approx(curvature[0], abs=1e-7)
        assert m == pytest.approx(2 * g / (1 + 2 * variance), abs=1e-7)
        assert np.exp(log_t) == pytest.approx(1 / (1 + 2 * variance), abs=1e-7)

    def test_decoder_noise_with_a_fixed_weight_sets_the_scale_by_the_weight(
        self, monkeypatch, variance, weight, factor, curvature
    ):
        exact_noise(monkeypatch)
        s = variance**0.5
        learner = game(
            g=0.9 * s,
            lower=SymmetricDivergence(factor),
            cycle=SquaredCycle(weight),
            decoder_noise=True,
        )
        k, g, *_ = fixed_point(learner, s * SIGNS)
        assert g**2 == pytest.approx(variance - 0.5, abs=1e-7)
        assert k == pytest.approx(weight / variance**2, abs=1e-7)
        assert k == pytest.approx(curvature[1], abs=1e-7)

    def test_calibrated_it_is_maximum_likelihood(
        self, monkeypatch, variance, weight, factor, curvature
    ):
        exact_noise(monkeypatch)
        s = variance**0.5
        learner = game(
            g=0.9 * s,
            lower=SymmetricDivergence(factor),
            cycle=GaussianCycle(None),
            decoder_noise=True,
        )
        k, *_ = fixed_point(learner, s * SIGNS)
        assert k == pytest.approx(1 / variance, abs=1e-7)
        assert k == pytest.approx(curvature[2], abs=1e-7)


def encoder_gradient(learner, x):
    gradients(learner, x)
    return learner.latent.posterior.encoder.value.grad.clone()


def test_the_frozen_encoder_learns_from_the_evidence_bound_alone(monkeypatch):
    exact_noise(monkeypatch)
    x = 1.3 * SIGNS
    both = gradients(game(lower=SymmetricDivergence(0.2), cycle=SquaredCycle(3.0)), x)
    alone = gradients(game(lower=ForwardDivergence(0.2)), x)
    torch.testing.assert_close(both[2:], alone[2:], rtol=0, atol=1e-15)
    assert abs(both[1] - alone[1]) > 0.1  # the generator does hear of the cycle


def test_without_bound_and_cycle_it_is_the_game_of_a_critic(monkeypatch):
    exact_noise(monkeypatch)
    x, k, g = 1.3 * SIGNS, 0.3, 0.8
    found = gradients(game(k, g, lower=ReverseDivergence(), cycle=SquaredCycle(0.0)), x)
    # E v²/2 − E (g h)²/2 upstairs, d/dg k g²/2 downstairs
    expected = torch.tensor([0.5 * 1.3**2 - 0.5 * g**2, k * g, 0, 0]).double()
    torch.testing.assert_close(found, expected)


def test_with_the_reverse_divergence_alone_the_cycle_teaches_the_encoder(monkeypatch):
    exact_noise(monkeypatch)
    found = encoder_gradient(game(lower=ReverseDivergence(), cycle=SquaredCycle(1.0)), SIGNS)
    # d/dm (h − m g h)² = −2 g (1 − m g)
    assert float(found[0]) == pytest.approx(-2 * 0.8 * (1 - 0.5 * 0.8), abs=1e-12)


def test_upper_and_lower_level_pull_the_encoder_exactly_apart():
    """What `cancel` leaves out: the cycle's pull, and the upper level's of E(x) − log q(z|x)."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(50, 1, generator=g).double()
    learner = game(cycle=GaussianCycle(None))
    encoder = learner.latent.posterior.encoder
    z, sample = (part.detach() for part in learner.draw(50, g))
    cycle = learner.cycle(z, *learner.encode(sample)).mean()
    (lower,) = torch.autograd.grad(cycle, encoder.value)

    def log_q(latents, data):
        mean, log_variance = encoder(data).chunk(2, dim=1)
        return torch.distributions.Normal(mean, (0.5 * log_variance).exp()).log_prob(latents)

    # draws of q at the data: two points with its moments, so that the score's mean is zero
    mean, log_variance = (part.detach() for part in learner.encode(x))
    spread = (0.5 * log_variance).exp()
    found = torch.cat([mean + spread, mean - spread])
    joint_energy = log_q(z, sample).mean() - log_q(found, torch.cat([x, x])).mean()
    (upper,) = torch.autograd.grad(joint_energy, encoder.value)
    assert float(lower.abs().max()) > 0.01
    torch.testing.assert_close(upper, -lower, rtol=0, atol=1e-13)


def test_not_cancelled_the_encoder_hears_of_samples(monkeypatch):
    exact_noise(monkeypatch)
    x = 1.3 * SIGNS
    learner = game(lower=SymmetricDivergence(0.2), cancel=False)
    terms = learner.player_terms((x, None), torch.Generator().manual_seed(0), 0)
    assert {"upper", "cycle"} <= terms.keys()
    frozen = encoder_gradient(game(lower=SymmetricDivergence(0.2)), x)
    assert not torch.allclose(encoder_gradient(learner, x), frozen)
    # KL(q(h|v̂) ‖ N(0, 1))/1 with v̂ detached: the generator does not hear of it
    (gain,) = (
        torch.autograd.grad(
            terms["upper"].sum(), learner.latent.likelihood.decoder.value, allow_unused=True
        )
        if terms["upper"].requires_grad
        else (None,)
    )
    assert gain is None


def test_weights_of_data_are_clamped_ratios(monkeypatch):
    exact_noise(monkeypatch)
    energy = torch.tensor([0.0, 0.1, 5.0])
    ratio = density_ratio(energy, 0.8, 1.2)
    torch.testing.assert_close(ratio, torch.tensor([1.2, 1.2, 0.8]))
    close = density_ratio(torch.tensor([0.0, 0.1]), 0.8, 1.2)
    torch.testing.assert_close(close, torch.tensor([0.05, -0.05]).exp())
    x = torch.tensor([[0.5], [-0.5], [1.0], [-1.0]]).double()
    plain = game(lower=ForwardDivergence(0.2)).player_terms((x, None), torch.Generator(), 0)
    learner = game(lower=ForwardDivergence(0.2), ratio_bounds=(0.8, 1.2))
    found = learner.player_terms((x, None), torch.Generator(), 0)
    weight = density_ratio(learner.energy(x), 0.8, 1.2)
    torch.testing.assert_close(found["prior"], weight * plain["prior"])
    assert float(weight.std()) > 0.01


def test_penalties_are_what_they_say(monkeypatch):
    exact_noise(monkeypatch)
    x, k = torch.tensor([[0.5], [2.0]]).double(), 0.3
    monkeypatch.setattr(game().latent.prior.__class__, "sample", lambda s, n, g=None: SIGNS[:2])
    learner = game(k, gradient_penalty=0.2, energy_penalty=0.1)
    terms = learner.critic_terms((x, None), torch.Generator(), 0)
    torch.testing.assert_close(terms["gradient_penalty"], 0.1 * (k * x[:, 0]) ** 2)
    sample = 0.5 * k * 0.8**2
    torch.testing.assert_close(
        terms["energy_penalty"], 0.1 * ((0.5 * k * x[:, 0] ** 2) ** 2 + sample**2)
    )
    (slope,) = torch.autograd.grad(terms["gradient_penalty"].sum(), learner.energy.value)
    assert float(slope) == pytest.approx(float(0.2 * k * x.square().sum()))


def test_channels_last_agrees_to_rounding():
    def build(channels_last):
        latent = strided()
        rates = {"energy": 1e-3, "posterior": 1e-3, "likelihood": 1e-3}
        return BiDVL(StridedEnergy(3, 8, 8), latent, rates, channels_last=channels_last)

    first, last = build(False), build(True)
    filters = last.energy.net[0].parametrizations.weight.original
    assert filters.is_contiguous(memory_format=torch.channels_last)
    batch = (torch.rand(6, 3, 8, 8), None)
    expected = first.terms(batch, torch.Generator().manual_seed(0))
    for name, term in last.terms(batch, torch.Generator().manual_seed(0)).items():
        torch.testing.assert_close(term, expected[name], rtol=1e-4, atol=1e-5)


def alone(tmp_path, **settings):
    """A trainer that keeps and says nothing."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"enable_checkpointing": False, "accelerator": "cpu", "default_root_dir": tmp_path}
    return Trainer(**quiet, **settings)


def points(num):
    return DataLoader(TensorDataset(torch.randn(num, 1).double(), torch.zeros(num)), 4)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You defined a")
def test_levels_share_one_pass_of_the_generator_and_no_evaluation_hangs_on_it(tmp_path):
    """The lower level's first step takes the samples of the upper level, with their graph."""
    batch, g = (torch.randn(4, 1).double(), None), torch.Generator()
    for shared, passes in ((True, 2), (False, 3)):  # of the data's latents, and of samples
        learner, calls = game(lower=SymmetricDivergence(0.2), shared_latents=shared), []
        decoder = learner.latent.likelihood.decoder
        decoder.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        before = decoder.value.detach().clone()
        alone(tmp_path, max_steps=1, limit_val_batches=0).fit(learner, points(4))
        assert len(calls) == passes
        assert not torch.equal(decoder.value, before)

        def loss(learner=learner):
            terms = learner.player_terms(batch, g.manual_seed(1), 0)
            return float(sum(t.mean() for t in terms.values()).detach())

        first = loss()
        learner.terms((torch.randn(4, 1).double(), None), g.manual_seed(0))
        assert loss() == first


def test_the_hinge_is_the_difference_within_the_margins_and_flat_beyond():
    inside = torch.tensor([-0.9, 0.5, 3.0], requires_grad=True)
    outside = torch.tensor([0.9, -0.5, -3.0], requires_grad=True)
    pair = [
        torch.autograd.grad(f(inside, outside).mean(), (inside, outside))
        for f in (hinge, contrastive_divergence)
    ]
    torch.testing.assert_close(pair[0], pair[1])
    met = hinge(torch.tensor([-2.0]), torch.tensor([2.0]))
    assert float(met) == 0.0


def test_a_warm_up_without_bound_and_negative_settings_are_refused():
    with pytest.raises(ValueError, match="this divergence has none"):
        game(lower=ReverseDivergence(), warm_up=10)
    with pytest.raises(ValueError, match=r"gradient_penalty is -1\.0; expected 0 or more"):
        game(gradient_penalty=-1.0)
    with pytest.raises(ValueError, match="one of them positive"):
        ForwardDivergence(0.0)


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You defined a")
def test_a_test_of_a_trained_model_shows_the_terms_after_the_warm_up(tmp_path):
    """A new trainer's `global_step` is 0; what counts is the checkpoint's."""
    learner = game(lower=SymmetricDivergence(0.2), warm_up=2)
    run = alone(tmp_path, max_steps=3, limit_val_batches=0)
    run.fit(learner, points(12))
    run.save_checkpoint(tmp_path / "a.ckpt")
    seen = []
    for ckpt in (None, tmp_path / "a.ckpt"):
        again = game(lower=SymmetricDivergence(0.2), warm_up=2)
        terms = again.player_terms
        again.player_terms = lambda *a, terms=terms: seen.append(terms(*a)) or seen[-1]
        alone(tmp_path).test(again, points(12), ckpt_path=ckpt, verbose=False)
    assert "energy" not in seen[0] and {"energy", "cycle"} <= seen[-1].keys()


def test_scores_are_high_for_data(monkeypatch):
    learner = game(k=1.0, g=0.7, m=0.7, log_t=-0.7)
    x = torch.tensor([[0.1], [3.0]]).double()
    scores = learner.scores(x, torch.Generator().manual_seed(0))
    assert all(float(s[0]) > float(s[1]) for n, s in scores.items() if n != "likelihood_ratio")
    torch.testing.assert_close(scores["energy"], -0.5 * x[:, 0] ** 2)
    torch.testing.assert_close(scores["gradient_norm"], -x[:, 0].abs())
    constant = -0.5 * (np.log(2 * np.pi) - 0.7)
    torch.testing.assert_close(scores["joint"], scores["energy"] + constant)
    torch.testing.assert_close(scores["product"], scores["energy"] + scores["bound"])
    torch.testing.assert_close(scores["reconstruction"], -((x[:, 0] * (1 - 0.49)) ** 2))


def test_a_resumed_run_is_the_uninterrupted_one(eblvm, tmp_path):
    """Both optimizers, spectral norms' vectors, batch statistics, the temperature, all noise."""
    small = ["--data.num_train=80", "--data.num_val=20", "--data.num_test=20"]
    small += ["--data.batch_size=20", "--trainer.callbacks=[]", "--trainer.accelerator=cpu"]
    small += ["--trainer.enable_progress_bar=false", "--monitor=val/loss", "--ema=0.9"]
    small += ["--trainer.max_epochs=-1", "--trainer.check_val_every_n_epoch=1"]
    recipe = ["fit", "--config", "toy/bidvl_tempered_8gaussians", *small]

    def state(runs):
        (last,) = (tmp_path / runs).rglob("last.ckpt")
        return last, torch.load(last)

    done = eblvm(*recipe, "--runs=a", "--trainer.max_steps=6")
    assert done.status == 0, done.err
    assert eblvm(*recipe, "--runs=b", "--trainer.max_steps=3").status == 0
    done = eblvm("fit", "--ckpt_path", state("b")[0], "--trainer.max_steps=6")
    assert done.status == 0, done.err
    whole, resumed = state("a")[1], state("b")[1]
    assert whole["global_step"] == resumed["global_step"] == 6
    assert whole["state_dict"]["inverse_temperature"] != 1
    assert whole["state_dict"].keys() == resumed["state_dict"].keys()
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    for one, other in zip(whole["optimizer_states"], resumed["optimizer_states"], strict=True):
        for index, found in one["state"].items():
            for key, value in found.items():
                assert torch.equal(value, other["state"][index][key]), key
