"""The temperature of an energy: closed forms, all ranks, checkpoints, and what it multiplies."""

import math

import pytest
import torch
from bidvl_parts import OTHER, SIGNS, game
from pytorch_lightning import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from eblvm.checkpoint import check_weights, load
from eblvm.data import DensityDataModule, EightGaussians
from eblvm.energies import Energy
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import GaussianLikelihood
from eblvm.metrics.grid import grid_points
from eblvm.models import BiDVL
from eblvm.models.networks import MLP
from eblvm.posteriors import AmortizedPosterior
from eblvm.priors import GaussianPrior
from eblvm.temperature import DenoisingTemperature


def quadratic(k):
    return lambda x: 0.5 * k * x[:, 0].square()


@pytest.mark.parametrize(("k", "s", "noise"), [(0.07, 1.0, 0.2), (3.0, 2.0, 0.5)])
def test_a_gaussian_gets_the_factor_of_the_noisy_data(monkeypatch, k, s, noise):
    """Data N(0, s²) with noise are N(0, s² + σ²): β k = 1/(s² + σ²). SIGNS, OTHER: exact means."""
    monkeypatch.setattr("eblvm.temperature.noise_like", lambda like, g=None: OTHER)
    temperature = DenoisingTemperature(noise)
    ((slope, square),) = sums = temperature.sums(quadratic(k), s * SIGNS)
    assert temperature.fit(sums) == slope / square
    assert float(slope / (2 * len(SIGNS))) == pytest.approx(k, rel=1e-12)
    assert float(slope / square) == pytest.approx(1 / (k * (s**2 + noise**2)), rel=1e-12)


@pytest.mark.parametrize(("k", "s", "noise"), [(0.07, 1.0, 0.2), (3.0, 2.0, 0.5)])
def test_extrapolated_it_is_that_of_the_data_themselves(monkeypatch, k, s, noise):
    """1/β is linear in σ², so two fits find β k = 1/s² exactly."""
    monkeypatch.setattr("eblvm.temperature.noise_like", lambda like, g=None: OTHER)
    temperature = DenoisingTemperature(noise, extrapolate=True)
    fitted = temperature.fit(temperature.sums(quadratic(k), s * SIGNS))
    assert float(fitted) == pytest.approx(1 / (k * s**2), rel=1e-12)


def test_where_no_line_leads_to_no_noise_the_fit_at_the_noise_stands():
    temperature = DenoisingTemperature(0.2, extrapolate=True)
    for second in (0.4, -1.0):  # 1/β_0 = 2 − 2.5 < 0; and another sign
        found = temperature.fit(torch.tensor([[1.0, 1.0], [second, 1.0]]))
        assert float(found) == 1.0
    assert temperature.fit(torch.tensor([[0.0, 0.0], [1.0, 1.0]])) is None


def test_opposite_noise_spares_most_of_the_variance():
    """Of a quadratic energy nothing but ε² is left in the first sum."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(1000, 1, generator=g, dtype=torch.float64)
    ((slope, _),) = DenoisingTemperature(0.1).sums(quadratic(2.0), x, g)
    # 1,000 squares of deviation √2, each twice: √2/√1000 = 4.5 %; with ε alone it were 32 %
    assert float(slope) == pytest.approx(2 * 2.0 * 1000, rel=0.1)


def test_no_noise_and_no_data_are_refused():
    with pytest.raises(ValueError, match="noise is 0; expected a positive number"):
        DenoisingTemperature(0)
    with pytest.raises(ValueError, match="num is 0"):
        DenoisingTemperature(num=0)


class Bowl(Energy):
    """E(x) = k ‖x‖²/2."""

    def __init__(self, k):
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k))

    def forward(self, x):
        return 0.5 * self.k * x.square().sum(1)


def plane(k=0.05, temperature=None, **settings):
    latent = LatentVariableModel(
        GaussianPrior(2),
        AmortizedPosterior(MLP(2, [8], 4)),
        GaussianLikelihood(MLP(2, [8], 2)),
    )
    rates = {"energy": 1e-5, "posterior": 1e-3, "likelihood": 1e-3}
    return BiDVL(Bowl(k), latent, rates, temperature=temperature, **settings)


def data():
    return DensityDataModule(EightGaussians(), 100, num_train=1000, num_val=100, num_test=100)


def trainer(folder, **settings):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", default_root_dir=folder, **(quiet | settings))


def expected(k, noise):
    """Least squares on a quadratic energy of the training data: 1/(k (E‖x‖²/2 + σ²))."""
    module = data()
    module.setup("fit")
    x = torch.cat([x for x, _ in module.batches("train", in_order=True)]).double()
    return 1 / (k * (float(x.square().sum(1).mean()) / 2 + noise**2))


@pytest.mark.filterwarnings("ignore:.*does not have many workers", "ignore:.*lr_scheduler")
def test_it_is_fitted_before_validation_and_kept(tmp_path):
    model = plane(temperature=DenoisingTemperature(0.2))
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    run.fit(model, datamodule=data())
    k = float(model.energy.k.detach())
    # 1,000 points in two dimensions: squares of ε are known to 1/√1000, cross terms to less
    assert float(run.callback_metrics["val/inverse_temperature"]) == pytest.approx(
        expected(k, 0.2), rel=0.1
    )
    assert float(model.inverse_temperature) == pytest.approx(expected(k, 0.2), rel=0.1)
    run.save_checkpoint(tmp_path / "a.ckpt")
    state = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(state["inverse_temperature"], model.inverse_temperature)
    before = float(model.inverse_temperature)
    run.test(model, datamodule=data(), verbose=False)
    assert float(model.inverse_temperature) == before  # by training data only


def test_all_ranks_count(monkeypatch, tmp_path):
    """The ratio of the sums over ranks, not the mean of ratios."""
    model = plane(temperature=DenoisingTemperature(0.2))
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    model.trainer, run.datamodule = run, data()
    run.datamodule.setup("fit")
    model.fit_temperature()
    mine = float(model.inverse_temperature)
    other = torch.tensor([[1.0, 1e6]], dtype=torch.float64)  # a rank whose energy is steep
    monkeypatch.setattr(model, "all_gather", lambda sums: torch.stack([sums, other]))
    model.fit_temperature()
    assert float(model.inverse_temperature) < 0.01 * mine


def test_a_flat_energy_keeps_its_factor(tmp_path):
    model = plane(0.0, DenoisingTemperature(0.2))
    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    model.trainer, run.datamodule = run, data()
    run.datamodule.setup("fit")
    model.fit_temperature()
    assert float(model.inverse_temperature) == 1


@pytest.mark.filterwarnings("ignore:You defined a")
def test_without_a_data_module_it_says_so(tmp_path):
    class Plain(LightningDataModule):
        def train_dataloader(self):
            return DataLoader(torch.zeros(4, 2))

    run = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    with pytest.raises(TypeError, match="this trainer has none"):
        run.fit(plane(temperature=DenoisingTemperature()), datamodule=Plain())


def test_checkpoints_from_before_have_factor_one():
    old, new = plane(), plane(temperature=DenoisingTemperature())
    assert "inverse_temperature" not in old.state_dict()
    checkpoint = {"state_dict": old.state_dict(), "current_model_state": old.state_dict()}
    check_weights(new, checkpoint, "old.ckpt")
    for state in checkpoint.values():
        new.load_state_dict(state)
    assert float(new.inverse_temperature) == 1


def test_densities_and_scores_are_those_of_the_tempered_energy():
    model = plane(0.05, DenoisingTemperature())
    model.inverse_temperature.fill_(20.0)  # 20 · 0.05 = 1: a standard Gaussian
    box = ((-5.0, 5.0),) * 2
    x = grid_points(box, 100, dtype=torch.float64)
    truth = -0.5 * x.square().sum(1) - math.log(2 * math.pi)
    torch.testing.assert_close(model.log_prob_on_grid(box, 100), truth, rtol=0, atol=1e-4)

    tempered = game(k=0.5, m=0.7, log_t=-0.7, temperature=DenoisingTemperature()).double()
    tempered.inverse_temperature.fill_(2.0)
    whole = game(k=1.0, m=0.7, log_t=-0.7)
    x = torch.tensor([[0.1], [3.0]]).double()
    pair = [m.scores(x, torch.Generator().manual_seed(0)) for m in (tempered, whole)]
    assert pair[0].keys() == pair[1].keys()
    for name, value in pair[0].items():
        torch.testing.assert_close(value, pair[1][name])


def test_training_sees_the_energy_as_it_is():
    tempered, plain = game(temperature=DenoisingTemperature()).double(), game()
    tempered.inverse_temperature.fill_(7.0)
    x = torch.tensor([[0.5], [-1.0]]).double()
    for one, other in zip(
        *(m.terms((x, None), torch.Generator().manual_seed(0)).values() for m in (tempered, plain)),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_the_recipe_keeps_its_temperature_in_the_checkpoint(eblvm, tmp_path):
    small = ["--data.num_train=80", "--data.num_val=20", "--data.num_test=20"]
    small += ["--data.batch_size=20", "--trainer.callbacks=[]", "--trainer.accelerator=cpu"]
    small += ["--monitor=val/loss", "--trainer.max_epochs=1"]
    done = eblvm("fit", "--config", "toy/bidvl_tempered_8gaussians", *small)
    assert done.status == 0, done.err
    (last,) = tmp_path.rglob("last.ckpt")
    model = load(last, "cpu")
    assert isinstance(model.temperature, DenoisingTemperature)
    assert float(model.inverse_temperature) != 1
