"""Bi-level learning of joint energies, on machines whose every quantity is known."""

import math
import warnings
import weakref

import pytest
import torch
from pytorch_lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from eblvm.benchmarks import upper
from eblvm.energies import JointEnergy
from eblvm.evaluation import Likelihood
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import GaussianLikelihood
from eblvm.metrics import log_normalizer
from eblvm.models.boltzmann import BoltzmannMachine
from eblvm.models.joint_bidvl import JointBiDVL, gradient_fit
from eblvm.models.networks import MLP
from eblvm.models.unroll import unroll
from eblvm.objectives import ForwardDivergence, ReverseDivergence, SymmetricDivergence
from eblvm.outliers import OutOfDistribution
from eblvm.pairs import EnumeratedPair, GaussianPair
from eblvm.posteriors import AmortizedPosterior
from eblvm.priors import GaussianPrior
from eblvm.rbm import GaussianBernoulliRBM
from eblvm.samplers import Gibbs, score

DATA = torch.tensor([[0.4, -0.7], [-1.0, 0.5]], dtype=torch.float64)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def fill(module, **values):
    with torch.no_grad():
        for name, value in values.items():
            getattr(module, name).copy_(value)
    return module


def machine(shift=0.0):
    """The machine of the golden numbers; `shift` moves every parameter a little, differently."""
    rbm = fill(
        GaussianBernoulliRBM(2, 3).double(),
        weight=tensor([1, -0.5, 0.3], [0.2, 0.8, -1]),
        visible_bias=tensor(0.1, -0.2),
        hidden_bias=tensor(0.3, -0.1, 0.2),
        log_scale=tensor(0.5, 0.8).log(),
    )
    if shift:
        g = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for p in rbm.parameters():
                p += shift * torch.randn(p.shape, generator=g, dtype=p.dtype)
    return rbm


def golden_pair():
    return fill(
        EnumeratedPair(2, 3).double(),
        encoder_bias=tensor(0.1, 0.2, -0.1),
        encoder_weight=tensor([0.5, 0, 0.1], [-0.2, 0.3, 0.4]),
        logits=tensor(0.3, -0.2, 0.1, 0, 0.5, -0.4, 0.2, 0.1),
        offset=tensor(0, 0.1),
        gain=tensor([0.3, -0.1, 0.2], [0, 0.4, -0.3]),
        log_variance=tensor(0.36, 0.49).log(),
    )


class TestGoldenNumbers:
    def test_the_normalizer_is_that_of_quadrature(self):
        rbm = machine()
        assert float(rbm.log_normalizer().detach()) == pytest.approx(3.5203528212902078, abs=1e-13)
        with torch.no_grad():
            z = log_normalizer(rbm, ((-6, 7), (-9, 9)), 500, dtype=torch.float64)
        assert float(z.log_z) == pytest.approx(3.5203528212902078, abs=1e-12)

    def test_free_energy_posterior_score_and_hidden_marginal(self):
        rbm = machine()
        with torch.no_grad():
            torch.testing.assert_close(
                rbm(DATA), tensor(-2.3173362019, 0.7567359331), rtol=0, atol=1e-10
            )
            expected = tensor(
                [0.6364525403, 0.2973393457, 0.7349725995],
                [0.3543436938, 0.6899744811, 0.3543436938],
            )
            torch.testing.assert_close(rbm.hidden_probability(DATA), expected, rtol=0, atol=1e-10)
            marginal = tensor(
                0.0743652522, 0.1592123415, 0.0690643578, 0.0853524191,
                0.1223381329, 0.2483996130, 0.1110786815, 0.1301892020,
            )  # fmt: skip
            torch.testing.assert_close(rbm.hidden_logits().softmax(0), marginal, rtol=0, atol=1e-10)
            expected = tensor(-1.2030166194, -4.2770887544)
            torch.testing.assert_close(rbm.log_prob(DATA), expected, rtol=0, atol=1e-10)
        expected = tensor([-0.4917253527, 0.4114393851], [4.5156595613, -0.8252453701])
        torch.testing.assert_close(score(rbm, DATA), expected, rtol=0, atol=1e-9)

    def test_the_joint_sums_to_the_free_energy_and_is_linear_in_h(self):
        rbm = machine()
        states = rbm.hidden_states()
        joint = torch.stack([rbm.joint(DATA, h.expand(2, -1)) for h in states])
        torch.testing.assert_close(-(-joint).logsumexp(0), rbm(DATA))
        weights = torch.tensor([0.25, 0.75]).double()
        mixed = weights @ joint[[2, 5]]
        mean = (weights[:, None] * states[[2, 5]]).sum(0)
        torch.testing.assert_close(rbm.joint(DATA, mean.expand(2, -1)), mixed)

    def test_identity_of_the_upper_level(self):
        rbm, pair = machine(), golden_pair()
        with torch.no_grad():
            likelihood = (-rbm(DATA) - rbm.log_normalizer()).mean()
            upper = pair.upper(rbm, DATA).mean()
            posterior = pair.posterior_divergence(rbm, DATA)[0].mean()
            joint = pair.joint_divergence(rbm)[0]
        for value, truth in (
            (likelihood, -2.740052686876988),
            (upper, 2.5958791925458704),
            (posterior, 0.19171795397527724),
            (joint, 0.3358914483063949),
        ):
            assert float(value) == pytest.approx(truth, abs=1e-13)
        assert float(upper + likelihood - posterior + joint) == pytest.approx(0, abs=1e-14)

    def test_at_the_exact_pair_the_gradient_is_the_likelihood_s(self):
        rbm, pair = machine(), golden_pair()
        pair.match(rbm)
        assert float(pair.posterior_divergence(rbm, DATA)[0].detach().abs().max()) < 1e-15
        assert float(pair.joint_divergence(rbm)[0].detach().abs()) < 1e-14
        upper = pair.upper(rbm, DATA).mean()
        (found,) = torch.autograd.grad(upper, rbm.hidden_bias, retain_graph=True)
        expected = tensor(0.1166075124, -0.0979722530, 0.0784954290)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
        cosine, error = gradient_fit(rbm, upper, DATA)
        assert float(cosine) == pytest.approx(1, abs=1e-14)
        assert float(error) < 1e-14


@pytest.mark.parametrize("stage", ["validate", "test"])
def test_the_gradient_s_error_is_that_of_all_data_however_cut(tmp_path, stage):
    rbm, pair = machine(), golden_pair()
    points = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).double()
    cosine, error = gradient_fit(rbm, pair.upper(rbm, points).mean(), points)
    settings = {"logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
    settings |= {"enable_progress_bar": False, "accelerator": "cpu", "inference_mode": False}
    learner = JointBiDVL(rbm, pair, {"energy": 1.0, "pair": 1.0})
    for size in (40, 15, 1):
        data = DataLoader(TensorDataset(points, torch.zeros(40)), batch_size=size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run = getattr(Trainer(**settings), stage)
            (found,) = run(learner, data, verbose=False)
        prefix = "val" if stage == "validate" else "test"
        assert found[f"{prefix}/gradient_cosine"] == pytest.approx(float(cosine), rel=1e-6)
        assert found[f"{prefix}/gradient_error"] == pytest.approx(float(error), rel=1e-6)


def test_closed_divergences_agree_with_quadrature_and_sums():
    rbm, pair = machine(), golden_pair()
    a, b = pair.encoder_bias + DATA @ pair.encoder_weight, rbm.hidden_bias + DATA @ rbm.weight
    q, p = torch.distributions.Bernoulli(logits=a), torch.distributions.Bernoulli(logits=b)
    kl = torch.distributions.kl_divergence
    here, there = pair.posterior_divergence(rbm, DATA)
    torch.testing.assert_close(here, kl(q, p).sum(1))
    torch.testing.assert_close(there, kl(p, q).sum(1))

    def components(logits, means, variance):
        weights = logits.softmax(0)
        normals = [
            torch.distributions.Independent(torch.distributions.Normal(m, variance.sqrt()), 1)
            for m in means
        ]
        return weights, normals

    mine = components(pair.logits, pair._means(), pair.log_variance.exp())
    means = rbm.visible_mean(rbm.hidden_states())
    other = components(rbm.hidden_logits(), means, (2 * rbm.log_scale).exp())
    for (w, n), (u, m), found in zip(
        (mine, other), (other, mine), pair.joint_divergence(rbm), strict=True
    ):
        parts = [w[k] * ((w[k] / u[k]).log() + kl(n[k], m[k])) for k in range(8)]
        torch.testing.assert_close(found, torch.stack(parts).sum())


def test_the_bias_of_the_gradient_is_bounded_by_the_divergences():
    """|∂J/∂c − its exact value| ≤ √(K_post/2) + √(K_joint/2), as −∂E/∂c is a bit (Pinsker)."""
    g = torch.Generator().manual_seed(0)
    shares = []
    for shift in (0.0, 0.03, 0.3, 1.0, 3.0):
        rbm, pair = machine(), golden_pair()
        pair.match(machine(shift))
        x = 2 * torch.randn(50, 2, generator=g, dtype=torch.float64)
        (found,) = torch.autograd.grad(pair.upper(rbm, x).mean(), rbm.hidden_bias)
        nll = rbm(x).mean() + rbm.log_normalizer()
        (exact,) = torch.autograd.grad(nll, rbm.hidden_bias)
        with torch.no_grad():
            bound = (pair.posterior_divergence(rbm, x)[0].mean().clamp_min(0) / 2).sqrt()
            bound += (pair.joint_divergence(rbm)[0].clamp_min(0) / 2).sqrt()
        bias = float((found - exact).abs().max())
        assert bias <= float(bound) + 1e-12
        shares.append(bias)
    assert shares[0] < 1e-12 < 1e-3 < shares[1] < shares[-1]


def fit_after(num_steps, divergence, unrolled):
    """cos and relative error of J's gradient, `num_steps` descents from a shifted optimum."""
    pair = golden_pair()
    pair.match(machine(0.3))
    return upper.fit_after(machine(), pair, divergence, num_steps, unrolled)[1:]


class Saved:
    """What autograd keeps for a backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


def saved_by_steps(unroll_steps):
    """How many tensors autograd holds before and after each step of a training step."""
    alive, counts = weakref.WeakSet(), []

    def pack(tensor):
        saved = Saved(tensor)
        alive.add(saved)
        return saved

    class Watched(JointBiDVL):
        def _move(self, *arguments, **options):
            before = len(alive)
            super()._move(*arguments, **options)
            counts.append((before, len(alive)))

    learner = Watched(
        machine(),
        golden_pair(),
        {"energy": 1e-3, "pair": 3e-3},
        unroll_steps=unroll_steps,
        player_steps=3,
    )
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        trainer.fit(learner, DataLoader(TensorDataset(DATA, DATA), batch_size=2))
    return counts


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:You defined a")
class TestUnrolling:
    @pytest.mark.parametrize(
        "divergence", [ReverseDivergence(), SymmetricDivergence()], ids=["reverse", "both"]
    )
    def test_the_gradient_gets_right_and_sooner_when_unrolled(self, divergence):
        steps = (2, 5, 10, 50)
        first = [fit_after(n, divergence, False) for n in steps]
        unrolled = [fit_after(n, divergence, True) for n in steps]
        for table in (first, unrolled):
            errors = [error for _, error in table]
            assert errors == sorted(errors, reverse=True)
            assert errors[-1] < 0.05
            assert table[-1][0] > 0.999
        for (_, plain), (_, better) in list(zip(first, unrolled, strict=True))[1:]:
            assert better <= plain

    def test_the_table_of_gradients_has_all_rows(self, capsys):
        upper.main("--steps 0 3 --machines 2".split())
        rows = [r for r in capsys.readouterr().out.splitlines() if r.startswith(("| rev", "| sym"))]
        assert [row.split(" | ")[1] for row in rows] == ["0", "3"] * 2
        for row in rows:
            *_, first, unrolled = row.removesuffix(" |").split(" | ")
            assert (first == unrolled) == (" | 0 | " in row)
        assert rows[0].split(" | ")[2:] == rows[2].split(" | ")[2:]  # no steps: no divergence

    def test_no_steps_are_first_order_bit_for_bit(self):
        rbm, pair = machine(), golden_pair()
        learner = JointBiDVL(rbm, pair, {"energy": 1.0, "pair": 1.0})
        optimizer = torch.optim.Adam(pair.parameters())
        pairs = [
            torch.autograd.grad(value.mean(), list(rbm.parameters()))
            for value in (learner.unrolled(DATA, optimizer), pair.upper(rbm, DATA))
        ]
        assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))

    @pytest.mark.parametrize(
        "make",
        [
            lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
            lambda p: torch.optim.Adam(p, lr=0.03, betas=(0.5, 0.95), weight_decay=0.01),
        ],
    )
    def test_unrolled_steps_are_the_optimizer_s_and_leave_it_alone(self, make):
        weight = nn.Parameter(tensor(1.0, -2.0, 0.5))
        optimizer = make([weight])

        def loss(values):
            return (values["w"] ** 4).sum() + values["w"].prod()

        for _ in range(3):  # some state to start from
            optimizer.zero_grad()
            loss({"w": weight}).backward()
            optimizer.step()
        before = weight.detach().clone()
        ahead = unroll(loss, {"w": weight}, optimizer, 4)["w"]
        again = unroll(loss, {"w": weight}, optimizer, 4)["w"]
        assert torch.equal(weight.detach(), before)
        assert torch.equal(ahead, again)
        for _ in range(4):
            optimizer.zero_grad()
            loss({"w": weight}).backward()
            optimizer.step()
        torch.testing.assert_close(ahead, weight, rtol=0, atol=1e-12)

    def test_first_order_retains_no_graph_of_the_lower_level(self):
        """What autograd saved is gone after every step; only unrolling keeps the lower level's."""
        peaks = {steps: saved_by_steps(steps) for steps in (0, 2)}
        for counts in peaks.values():
            assert [after for _, after in counts] == [0] * 4  # three of the pair, one of the energy
        (*lower, (first, _)), (*_, (unrolled, _)) = peaks[0], peaks[2]
        assert all(before > 0 for before, _ in lower)
        assert unrolled > first + 2 * lower[0][0]  # of both steps, and of gradients

    def test_the_unrolled_pair_is_thrown_away_whole(self):
        """Its batch statistics, too: they would be those of a pair that is never used."""
        latent = LatentVariableModel(
            GaussianPrior(2),
            AmortizedPosterior(MLP(2, [8], 4, batch_norm=True)),
            GaussianLikelihood(MLP(2, [8], 2, batch_norm=True)),
        )
        pair = GaussianPair(latent)
        rates = {"energy": 1e-3, "pair": 1e-3}
        learner = JointBiDVL(Bowl(), pair, rates, ReverseDivergence(), unroll_steps=2)
        optimizer = torch.optim.Adam(pair.parameters())
        before = {name: value.clone() for name, value in pair.state_dict().items()}
        x, energy = torch.randn(16, 2), learner.energy
        value = learner.train().unrolled(x, optimizer).mean()
        (slope,) = torch.autograd.grad(value, energy.gain)
        assert float(slope) != 0
        assert len(before) > len(list(pair.parameters()))
        for name, found in pair.state_dict().items():
            assert torch.equal(found, before[name]), name

    def test_other_optimizers_are_refused(self):
        weight = nn.Parameter(tensor(1.0))
        with pytest.raises(TypeError, match="cannot unroll RMSprop"):
            unroll(lambda v: v["w"].sum(), {"w": weight}, torch.optim.RMSprop([weight]), 1)


class Bowl(JointEnergy):
    """E(x, z) = g ‖x‖²/2 + ‖z‖²/2."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))

    def joint(self, x, z):
        return 0.5 * (self.gain * x.square().sum(1) + z.square().sum(1))


class Quadratic(JointEnergy):
    """E(x, z) = ½‖x − W z‖²/σ² + ½‖z‖²: a linear-Gaussian model with known posterior."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(tensor([0.8]))

    def joint(self, x, z):
        return ((x - self.gain * z).square() / 0.5 + z.square()).sum(1) / 2


class LinearEncoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(tensor(0.1))
        self.log_variance = nn.Parameter(tensor(0.0))

    def forward(self, x):
        return torch.cat([self.mean * x, self.log_variance.expand(len(x), 1)], 1)


class Gain(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = nn.Parameter(tensor(value))

    def forward(self, z):
        return self.value * z


class TestGaussianPair:
    def pair(self, gain=0.3):
        latent = LatentVariableModel(
            GaussianPrior(1).double(),
            AmortizedPosterior(LinearEncoder()),
            GaussianLikelihood(Gain(gain), 0.5**0.5),
        )
        return GaussianPair(latent)

    def test_the_lower_level_finds_posterior_and_joint(self):
        energy, pair = Quadratic(), self.pair()
        g = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(pair.parameters(), lr=0.02)
        x = (0.8**2 + 0.5) ** 0.5 * torch.randn(4096, 1, generator=g, dtype=torch.float64)
        for step in range(400):
            if step == 300:
                optimizer.param_groups[0]["lr"] = 0.002
            terms = pair.lower(energy, x, ReverseDivergence(), ReverseDivergence(), g)
            optimizer.zero_grad()
            sum(t.mean() for t in terms.values()).backward()
            optimizer.step()
        encoder = pair.latent.posterior.encoder
        precision = 1 + 0.8**2 / 0.5
        assert float(encoder.mean.detach()) == pytest.approx(0.8 / 0.5 / precision, abs=0.02)
        assert float(encoder.log_variance.detach()) == pytest.approx(-math.log(precision), abs=0.03)
        assert float(pair.latent.likelihood.decoder.value.detach()) == pytest.approx(0.8, abs=0.03)

    def test_the_upper_gradient_is_zero_where_all_agree(self):
        energy, pair = Quadratic(), self.pair(0.8)
        precision = 1 + 0.8**2 / 0.5
        fill(
            pair.latent.posterior.encoder,
            mean=tensor(0.8 / 0.5 / precision),
            log_variance=-tensor(precision).log(),
        )
        g = torch.Generator().manual_seed(0)
        x = (0.8**2 + 0.5) ** 0.5 * torch.randn(200_000, 1, generator=g, dtype=torch.float64)
        upper = pair.upper(energy, x, g).mean()
        (slope,) = torch.autograd.grad(upper, energy.gain)
        assert abs(float(slope)) < 0.02  # two means of 200,000 terms with deviation below 3

    def test_forward_posterior_is_refused(self):
        with pytest.raises(ValueError, match="Use ReverseDivergence for the posterior"):
            self.pair().lower(Quadratic(), DATA[:, :1], ForwardDivergence(), ReverseDivergence())
        rates = {"energy": 1e-3, "pair": 1e-3}
        with pytest.raises(ValueError, match="Use ReverseDivergence for the posterior"):
            JointBiDVL(Quadratic(), self.pair(), rates)  # D₁ is symmetric: before any data is read
        JointBiDVL(Quadratic(), self.pair(), rates, ReverseDivergence())


class TestScores:
    def test_of_a_machine_are_exact(self):
        rbm = machine()
        learner = JointBiDVL(rbm, golden_pair(), {"energy": 1e-3, "pair": 1e-3})
        found = learner.scores(DATA)
        gap = learner.log_likelihood(DATA) - found["energy"]
        assert float(gap[0]) == pytest.approx(float(gap[1]), abs=1e-12)
        slope = torch.autograd.functional.jacobian(lambda x: rbm(x).sum(), DATA)
        torch.testing.assert_close(found["gradient_norm"], -slope.norm(dim=1))
        with torch.no_grad():
            q = torch.sigmoid(
                tensor(0.1, 0.2, -0.1) + DATA @ tensor([0.5, 0, 0.1], [-0.2, 0.3, 0.4])
            )
            torch.testing.assert_close(found["joint"], -rbm.joint(DATA, q))

    def test_of_a_bound_are_exact_at_the_posterior_and_lower_elsewhere(self):
        precision = 1 + 0.8**2 / 0.5
        pair = TestGaussianPair().pair(0.8)
        fill(
            pair.latent.posterior.encoder,
            mean=tensor(0.8 / 0.5 / precision),
            log_variance=-tensor(precision).log(),
        )
        rates = {"energy": 1e-3, "pair": 1e-3}
        learner = JointBiDVL(Quadratic(), pair, rates, ReverseDivergence())
        x = tensor([-1.3], [0.2], [2.0])
        g = torch.Generator().manual_seed(0)
        found = learner.scores(x, g, num_draws=20_000)
        # x ~ N(0, 0.8² + 0.5), and ∫ exp(−E(x, z)) dz its density times 2π √0.5
        variance = 0.8**2 + 0.5
        log_prob = -0.5 * (x.square() / variance + math.log(2 * math.pi * variance)).squeeze(1)
        exact = log_prob + math.log(2 * math.pi) + 0.5 * math.log(0.5)
        torch.testing.assert_close(found["energy"], exact, rtol=0, atol=0.02)
        slopes = -(x / variance).abs().squeeze(1)
        torch.testing.assert_close(found["gradient_norm"], slopes, rtol=0, atol=0.02)
        fill(pair.latent.posterior.encoder, mean=tensor(0.3))
        off = learner.scores(x, g, num_draws=20_000)["energy"]
        assert (off[[0, 2]] < exact[[0, 2]] - 0.1).all()

    def test_the_table_of_other_sets_is_of_them(self, tmp_path):
        rbm, pair = machine(), golden_pair()
        pair.match(rbm)
        learner = JointBiDVL(rbm, pair, {"energy": 1e-3, "pair": 1e-3}).double()
        x = rbm.sample(500, torch.Generator().manual_seed(0))
        callback = OutOfDistribution(scale=20.0, num_bootstrap=20)
        trainer = Trainer(
            accelerator="cpu",
            inference_mode=False,
            logger=False,
            enable_progress_bar=False,
            default_root_dir=tmp_path,
            callbacks=[callback],
        )
        data = DataLoader(TensorDataset(x, torch.zeros(500)), batch_size=100)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.test(learner, data, verbose=False)
        assert float(trainer.logged_metrics["test/ood/uniform"]) > 0.95  # of energy, the first
        assert {"test/ood/mean/gradient_norm", "test/ood/mean/joint"} <= set(trainer.logged_metrics)


class TestBoltzmannMachine:
    def test_the_exact_gradient_is_finite_differences_of_the_likelihood(self):
        learner = BoltzmannMachine(machine())
        loss = learner.terms((DATA, None), torch.Generator())["nll"].mean()
        (slope,) = torch.autograd.grad(loss, learner.energy.hidden_bias)
        shifted = machine()
        with torch.no_grad():
            shifted.hidden_bias[1] += 1e-6
            up = -BoltzmannMachine(shifted).log_likelihood(DATA).mean()
        assert float((up - loss.detach()) / 1e-6) == pytest.approx(float(slope[1]), abs=1e-6)

    def test_persistent_chains_go_on_and_contrast_converges_to_the_exact_gradient(self):
        rbm = machine()
        learner = BoltzmannMachine(rbm, sampler=Gibbs(20), num_chains=100_000).double()
        g = torch.Generator().manual_seed(0)
        before = learner.persistent.clone()
        terms = learner.terms((DATA, None), g)
        assert not torch.equal(before, learner.persistent)
        (found,) = torch.autograd.grad(terms["contrast"].mean(), rbm.hidden_bias)
        exact = tensor(0.1166075124, -0.0979722530, 0.0784954290)
        torch.testing.assert_close(found, exact, rtol=0, atol=0.01)

    def test_the_loss_and_the_exact_likelihood_are_told(self, tmp_path):
        likelihood = Likelihood()
        settings = {"logger": False, "enable_checkpointing": False, "max_epochs": 1}
        settings |= {"enable_progress_bar": False, "enable_model_summary": False}
        trainer = Trainer(
            accelerator="cpu", default_root_dir=tmp_path, callbacks=[likelihood], **settings
        )
        data = DataLoader(TensorDataset(DATA, torch.zeros(len(DATA))), batch_size=len(DATA))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.fit(BoltzmannMachine(machine(), sampler=Gibbs(1)).double(), data, data)
        logged = trainer.logged_metrics
        assert logged["train/loss"] == logged["train/contrast"]
        assert likelihood.protocol["estimator"] == "exact"

    def test_chains_without_a_sampler_are_refused(self):
        with pytest.raises(ValueError, match="the exact gradient has no chains"):
            BoltzmannMachine(machine(), num_chains=10)
