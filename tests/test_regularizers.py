"""What symbols say about latents, labels about symbols; and the weight of the prior's term."""

import math

import pytest
import torch
from torch import nn

from eblvm.energies import SymbolVectorEnergy, SymbolVectorTimeEnergy
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import GaussianLikelihood
from eblvm.models import LatentEBM
from eblvm.models.initialization import UniformInitialization
from eblvm.models.kl_weight import ConstantWeight, CyclicWeight, KLWeight, LogisticWeight
from eblvm.models.networks import MLP, MLPEnergy, ResidualTimeNet, settle_spectral_norms
from eblvm.objectives import gaussian_kl, mutual_information, negative_entropy
from eblvm.posteriors import AmortizedPosterior, Inference
from eblvm.priors import DiffusionEnergyPrior, EnergyPrior, GaussianPrior
from eblvm.regularizers import CrossEntropy, InformationBottleneck, cross_entropy
from eblvm.samplers import Langevin
from eblvm.schedules import RecoverySchedule


def svebm_prior(symbols=3, dim=2):
    return EnergyPrior(dim, SymbolVectorEnergy(MLP(dim, [8], symbols)), Langevin(3, 0.4))


def diffusion_prior(symbols=3, dim=2):
    net = ResidualTimeNet(dim, symbols, width=8, num_blocks=1)
    return DiffusionEnergyPrior(dim, SymbolVectorTimeEnergy(net), RecoverySchedule(), num_steps=3)


def learner(prior, **settings):
    torch.manual_seed(0)
    latent = LatentVariableModel(
        prior, AmortizedPosterior(MLP(2, [8], 4)), GaussianLikelihood(MLP(2, [8], 2))
    )
    rates = {name: 1e-3 for name in ("prior", "posterior", "likelihood")}
    if isinstance(prior, GaussianPrior) and not list(prior.parameters()):
        rates.pop("prior")
    return LatentEBM(latent, rates, **settings)


def test_terms_of_one_step_read_symbols_off_one_draw():
    """Information and cross-entropy of the same z_0; a mean or fresh draws are others."""
    latent = learner(diffusion_prior()).latent
    x, label = torch.randn(6, 2), torch.randint(3, (6,))
    inference = latent.infer(x)
    generator = torch.Generator().manual_seed(1)
    terms = [InformationBottleneck(1.0), CrossEntropy(1.0)]
    found = [term(latent, (x, label), inference, generator) for term in terms]
    # the energy's normalization moves with each evaluation in training, and draws with each noise
    logits = inference.symbols[True]
    torch.testing.assert_close(found[0], -mutual_information(logits))
    torch.testing.assert_close(found[1], nn.functional.cross_entropy(logits, label))
    once = torch.Generator().manual_seed(1)
    latent.prior.schedule.diffuse(inference.z, 0, once)
    assert torch.equal(generator.get_state(), once.get_state())
    at_mean = CrossEntropy(1.0, mean=True)(latent, (x, label), inference, generator)
    fresh = InformationBottleneck(1.0, num_draws=1)(latent, (x, label), inference, generator)
    assert at_mean != found[1] and fresh != found[0]
    assert inference.symbols[True] is logits and len(inference.symbols) == 1
    assert not inference.at_mean().symbols


# Symbol-vector energies


@pytest.mark.parametrize("bound", [None, 0.5])
def test_symbols_are_summed_out(bound):
    energy = SymbolVectorEnergy(MLP(2, [8], 5), bound).double()
    z = torch.randn(4, 2, dtype=torch.float64)
    plain = -torch.logsumexp(energy.logits(z), 1)  # about -log 5
    expected = plain if bound is None else 0.5 * torch.tanh(plain / 0.5)
    torch.testing.assert_close(energy(z), expected)
    total = sum((-energy.given(z, torch.full((4,), y))).exp() for y in range(5))
    torch.testing.assert_close((-energy(z)).exp(), total)
    assert energy.num_symbols == 5
    joint = torch.stack([-energy.given(z, torch.full((4,), y)) for y in range(5)], 1)
    torch.testing.assert_close(joint.softmax(1), energy.logits(z).softmax(1))


def test_one_symbol_is_the_plain_energy():
    energy = SymbolVectorEnergy(MLP(2, [8], 1))
    z = torch.randn(4, 2)
    torch.testing.assert_close(energy(z), -energy.net(z)[:, 0])


def test_parameter_count_of_the_symbol_vector_net_is_the_published_one():
    energy = SymbolVectorEnergy(MLP(40, [200, 200], 20))
    assert sum(p.numel() for p in energy.parameters()) == 52_420


def test_symbol_vector_prior_samples_given_a_symbol():
    """Logits ±c·z₁ with N(0, 1) as base: given y, z₁ ~ N(±c, 1); chains are near that."""
    net = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.5, 0.0], [-1.5, 0.0]]))
    prior = EnergyPrior(2, SymbolVectorEnergy(net), Langevin(100, 0.4))
    label = torch.tensor([0, 1]).repeat(2000)
    z = prior.sample(4000, torch.Generator().manual_seed(0), label)
    error = 4 * 1.05 / math.sqrt(2000)
    assert float(z[label == 0, 0].mean()) == pytest.approx(1.5, abs=error)
    assert float(z[label == 1, 0].mean()) == pytest.approx(-1.5, abs=error)
    assert float(z[:, 1].mean()) == pytest.approx(0, abs=error)


def test_data_are_drawn_given_a_symbol():
    model = learner(diffusion_prior()).eval()
    label = torch.tensor([0, 1, 2])
    z = model.latent.prior.sample(3, torch.Generator().manual_seed(0), label)
    x = model.sample(3, torch.Generator().manual_seed(0), label=label)
    torch.testing.assert_close(x, model.latent.likelihood.mean(z))


def test_priors_without_symbols_say_so():
    z = torch.zeros(1, 2)
    with pytest.raises(TypeError, match="GaussianPrior has no symbols; use an EnergyPrior"):
        GaussianPrior(2).symbol_logits(z)
    with pytest.raises(TypeError, match="GaussianPrior has no symbols"):
        GaussianPrior(2).sample(1, label=torch.zeros(1, dtype=torch.long))
    plain = EnergyPrior(2, MLPEnergy(2, [4]), Langevin(1, 0.1))
    with pytest.raises(TypeError, match="MLPEnergy, which has no symbols"):
        plain.sample(1, label=torch.zeros(1, dtype=torch.long))
    with pytest.raises(TypeError, match="Identity holds no linear layer"):
        _ = SymbolVectorEnergy(nn.Identity()).num_symbols
    with pytest.raises(ValueError, match="bound is 0; expected a positive number"):
        SymbolVectorEnergy(nn.Identity(), bound=0)


# Free bits


def test_free_bits_leave_small_divergences_out():
    mean = torch.tensor([[0.0, 3.0]], requires_grad=True)
    log_variance = torch.tensor([[0.1, 0.0]], requires_grad=True)
    kl = gaussian_kl(mean, log_variance, free_bits=1.0)
    assert kl.tolist() == [4.5]
    gradients = torch.autograd.grad(kl.sum(), (mean, log_variance))
    assert gradients[0].tolist() == [[0.0, 3.0]] and gradients[1].tolist() == [[0.0, 0.0]]
    torch.testing.assert_close(
        gaussian_kl(mean, log_variance, 0.0), gaussian_kl(mean, log_variance)
    )


def test_negative_entropy_is_the_gaussians():
    log_variance = torch.randn(3, 4)
    exact = torch.distributions.Normal(0, (0.5 * log_variance).exp()).entropy().sum(1)
    constant = 0.5 * 4 * math.log(2 * math.pi)
    torch.testing.assert_close(negative_entropy(log_variance), constant - exact)


def test_gradient_of_the_masked_entropy():
    # 0 where the log-variance is above −3, −½ per element below
    log_variance = torch.tensor([[-3.1, -2.9, 0.0]], requires_grad=True)
    negative_entropy(log_variance, 1.0).sum().backward()
    assert log_variance.grad.tolist() == [[-0.5, 0.0, 0.0]]


# Information and labels


def test_mutual_information_has_its_known_values():
    assert float(mutual_information(torch.randn(8, 1))) == pytest.approx(0, abs=1e-6)
    assert float(mutual_information(torch.zeros(8, 5))) == pytest.approx(0, abs=1e-6)
    certain = 200.0 * torch.eye(5).repeat(3, 1)
    assert float(mutual_information(certain)) == pytest.approx(math.log(5), abs=1e-6)
    same = 200.0 * torch.eye(5)[:1].repeat(4, 1)  # symbols that nobody has
    assert float(mutual_information(same)) == pytest.approx(0, abs=1e-6)


def test_mutual_information_by_brute_force():
    logits = torch.randn(6, 4, dtype=torch.float64)
    joint = logits.softmax(1) / 6  # p(b, y)
    product = joint.sum(1, keepdim=True) * joint.sum(0)
    exact = (joint * (joint / product).log()).sum()
    torch.testing.assert_close(mutual_information(logits), exact)


def test_gradient_of_the_information_is_finite_where_symbols_vanish():
    logits = (200.0 * torch.eye(5)[:1].repeat(4, 1)).requires_grad_()
    mutual_information(logits).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("make", [svebm_prior, diffusion_prior])
def test_regularizers_reach_energy_and_encoder(make):
    model = learner(make())
    x, label = torch.randn(6, 2), torch.arange(6) % 3
    inference = model.latent.infer(x)
    for term in (InformationBottleneck(1.0), CrossEntropy(1.0), InformationBottleneck(1, False, 4)):
        value = term(model.latent, (x, label), inference, torch.Generator().manual_seed(0))
        for part in (model.latent.prior, model.latent.posterior):
            weights = [p for n, p in part.named_parameters() if "weight" in n or "original" in n]
            found = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
            assert sum(float(g.abs().sum()) for g in found if g is not None) > 0
    assert term.name == "information"


def test_cross_entropy_counts_labeled_rows_only():
    logits, label = torch.randn(4, 3), torch.tensor([0, -1, 2, -1])
    log_p = logits.log_softmax(1)
    torch.testing.assert_close(cross_entropy(logits, label), -(log_p[0, 0] + log_p[2, 2]) / 2)
    assert cross_entropy(logits, torch.full((4,), -1)) == 0
    assert cross_entropy(torch.randn(4, 1), torch.zeros(4, dtype=torch.long)) == 0
    with pytest.raises(ValueError, match="a label is 3, but the prior has 3 symbols"):
        cross_entropy(logits, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"labels have dtype torch.float32 .* expected integers"):
        cross_entropy(logits, torch.zeros(4))


def test_cross_entropy_of_means_and_of_pseudo_labels():
    model = learner(svebm_prior())
    x, label = torch.randn(6, 2), torch.arange(6) % 3
    inference = model.latent.infer(x)
    logits = model.latent.prior.symbol_logits(inference.mean)
    value = CrossEntropy(1.0, mean=True)(model.latent, (x, label), inference)
    torch.testing.assert_close(value, cross_entropy(logits, label))
    pseudo = CrossEntropy(1.0, pseudo=True)
    assert pseudo(model.latent, (x, label), inference) > 0
    model.latent.eval()
    assert pseudo(model.latent, (x, label + 100), inference) == 0


def test_draws_of_an_inference():
    mean, log_variance = torch.zeros(2, 1), torch.full((2, 1), 2.0)
    inference = Inference(mean, mean, log_variance)
    z = torch.cat([inference.draw() for _ in range(20_000)])
    assert float(z.std()) == pytest.approx(math.e, rel=4 / math.sqrt(80_000))
    assert Inference(mean).draw() is mean
    assert Inference(mean + 1, mean, log_variance).at_mean().z is mean


# The weight of the prior's term


def test_cyclic_weight_is_the_published_schedule():
    weight = CyclicWeight(1000, 10, value=0.5, zero_ratio=0.5, rise_ratio=0.25)
    assert [weight(i) for i in range(51)] == [0.0] * 51
    assert [weight(i) for i in (51, 74)] == pytest.approx([0.02, 0.48])
    assert {weight(i) for i in range(75, 100)} == {0.5}
    assert weight(100) == 0 and weight(151) == pytest.approx(0.02) and weight(1075) == 0.5


def test_logistic_and_constant_weights():
    weight = LogisticWeight()
    assert weight(2500) == 0.5
    assert weight(2900) == pytest.approx(1 / (1 + math.exp(-1)))
    assert 0 < weight(0) < 0.01
    assert LogisticWeight(rate=100.0)(0) >= 0
    assert ConstantWeight(0.3)(7) == 0.3


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConstantWeight(-1), "value is -1; expected 0 or more"),
        (lambda: CyclicWeight(10, 20), "num_cycles is 20 for 10 steps"),
        (lambda: CyclicWeight(10, 2, zero_ratio=0.9, rise_ratio=0.2), "together at most 1"),
        (lambda: InformationBottleneck(-1), "weight is -1; expected 0 or more"),
        (lambda: UniformInitialization(0), "bound is 0; expected a positive number"),
    ],
)
def test_wrong_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# In the learner


def test_loss_is_the_weighted_sum_of_its_terms():
    terms = [InformationBottleneck(0.5), CrossEntropy(2.0)]
    model = learner(diffusion_prior(), kl_weight=0.1, regularizers=terms)
    batch = torch.randn(6, 2), torch.arange(6) % 3
    logged = {}
    model.log_dict = lambda figures, **_: logged.update(figures)
    state = {name: buffer.clone() for name, buffer in model.named_buffers()}
    loss = model.step(batch, 0, "train")
    for name, buffer in model.named_buffers():
        buffer.copy_(state[name])  # power iterations moved the normalization
    parts = {name.removeprefix("train/"): value for name, value in logged.items()}
    total = parts["reconstruction"] + 0.1 * parts["prior"]
    total = total + 0.5 * parts["information"] + 2.0 * parts["cross_entropy"]
    torch.testing.assert_close(loss, total)
    assert "displacement" in parts


class Off(KLWeight):
    def __call__(self, step):
        return 0.0


def test_an_autoencoder_trains_at_the_mean_and_leaves_the_prior_alone():
    model = learner(svebm_prior(), kl_weight=Off(), regularizers=[InformationBottleneck(1.0)])
    model.log_dict = lambda *_, **__: None
    x = torch.randn(6, 2)
    loss = model.step((x, None), 0, "train")
    expected = -model.latent.likelihood.log_prob(x, model.encode(x)).mean()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert all(p.grad is not None for p in model.latent.prior.parameters())  # for DDP
    model.on_after_backward()
    assert all(p.grad is None for p in model.latent.prior.parameters())
    weight = model.latent.posterior.encoder[1].weight
    assert weight.grad.abs().max() > 0


def test_a_regularizer_may_stay_while_autoencoding():
    kept = CrossEntropy(1.0, when_autoencoding=True)
    model = learner(svebm_prior(), kl_weight=0, regularizers=[kept])
    model.log_dict = lambda *_, **__: None
    model.step((torch.randn(6, 2), torch.arange(6) % 3), 0, "train").backward()
    model.on_after_backward()
    assert model.latent.prior.tilt.net[1].weight.grad.abs().max() > 0


def test_symbols_of_data_are_the_likeliest():
    model = learner(diffusion_prior())
    model.eval()
    x = torch.randn(5, 2)
    logits = model.latent.prior.symbol_logits(model.encode(x))
    assert model.symbols(x).tolist() == logits.argmax(1).tolist()


def test_gradients_are_clipped_by_component_or_jointly():
    norms = {"prior": 0.5, "posterior+likelihood": 0.25}
    model = learner(svebm_prior(), clip_norms=norms)
    optimizer = model.configure_optimizers()["optimizer"]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.configure_gradient_clipping(optimizer, None, None)

    def norm(*parts):
        grads = [p.grad for part in parts for p in getattr(model.latent, part).parameters()]
        return float(torch.cat([g.flatten() for g in grads]).norm())

    assert norm("prior") == pytest.approx(0.5, rel=1e-4)
    assert norm("posterior", "likelihood") == pytest.approx(0.25, rel=1e-4)
    assert norm("posterior") == pytest.approx(0.25 * math.sqrt(60 / 102), rel=1e-4)


def test_components_that_are_not_named_follow_the_trainer():
    model = learner(svebm_prior(), clip_norms={"prior": 0.5})
    optimizer = model.configure_optimizers()["optimizer"]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    model.configure_gradient_clipping(optimizer, 0.1, "value")
    for p in model.latent.posterior.parameters():
        torch.testing.assert_close(p.grad, torch.full_like(p, 0.1))
    assert float(model.latent.prior.tilt.net[1].weight.grad.max()) < 0.5


def test_weight_decay_by_component():
    model = learner(svebm_prior(), weight_decays={"prior": 1e-3})
    groups = {g["name"]: g for g in model.configure_optimizers()["optimizer"].param_groups}
    assert groups["prior"]["weight_decay"] == 1e-3 and groups["posterior"]["weight_decay"] == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clip_norms": {"energy": 1.0}}, r"clip_norms names \['energy'\]; the model has"),
        ({"clip_norms": {"prior+prior": 1.0}}, "names a component twice"),
        ({"clip_norms": {"prior": 0.0}}, "is 0.0; expected a positive number"),
        ({"weight_decays": {"energy": 1.0}}, r"weight_decays names \['energy'\]"),
    ],
)
def test_wrong_components_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        learner(svebm_prior(), **settings)


def test_uniform_initialization_reaches_everything_and_settles_the_norms():
    model = learner(diffusion_prior(), initialization=UniformInitialization(0.1))
    for p in model.parameters():
        assert p.abs().max() <= 0.1
    weight = model.latent.posterior.encoder[1].weight.detach()
    assert float(weight.std()) == pytest.approx(0.2 / math.sqrt(12), rel=0.3)
    model.eval()
    layer = model.latent.prior.tilt.net.head
    assert float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("prior", [svebm_prior, diffusion_prior])
def test_the_prior_s_own_weight_is_not_the_encoder_s(prior):
    x = torch.randn(6, 2)

    def gradients(**settings):
        model = learner(prior(), **settings)
        torch.manual_seed(1)
        for parameter in model.latent.prior.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        for module in model.modules():
            if isinstance(module, ResidualTimeNet):
                settle_spectral_norms(module)
        model.eval()  # the same spectral norms each time
        model.log_dict = lambda *arguments, **settings: None
        loss = model.step((x, torch.zeros(6)), 0, "train")
        loss.backward()
        parts = model.components().items()
        return loss.detach(), {n: [p.grad for p in m.parameters()] for n, m in parts}

    small, published = gradients(kl_weight=0.01)
    _, whole = gradients(kl_weight=2.0)
    loss, found = gradients(kl_weight=0.01, prior_weight=2.0)
    torch.testing.assert_close(loss, small)  # the value is the bound's
    for name in ("posterior", "likelihood"):
        torch.testing.assert_close(found[name], published[name])
    torch.testing.assert_close(found["prior"], whole["prior"])
    assert float(whole["prior"][0].abs().max()) > 0


def test_the_prior_s_own_weight_is_positive():
    with pytest.raises(ValueError, match="prior_weight is 0"):
        learner(svebm_prior(), prior_weight=0.0)
