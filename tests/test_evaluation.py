"""Evaluation callbacks and what they are computed from."""

import csv
import math
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from test_data_images import data_root
from torch import nn
from torch.distributions import MultivariateNormal

from eblvm.data import DensityDataModule, EightGaussians, ImageDataModule
from eblvm.evaluation import (
    GridDensity,
    Likelihood,
    Modes,
    Reconstructions,
    SampleDensity,
    SampleQuality,
    Samples,
    StackedModes,
)
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import GaussianLikelihood
from eblvm.metrics import ClassifierFeatures, FrechetDistance, PixelFeatures
from eblvm.metrics.grid import energy_log_prob, grid_points, kl_of_masses, push_forward
from eblvm.models import LatentEBM
from eblvm.models.networks import MLP
from eblvm.pictures import image_grid, save_samples
from eblvm.posteriors import AmortizedPosterior
from eblvm.priors import GaussianPrior

BOX = ((-6.0, 6.0), (-6.0, 6.0))
RATES = {"posterior": 1e-3, "likelihood": 1e-3}


def vae(event_shape, latent_dim=2, scale=0.3):
    size = math.prod(event_shape)
    decoder = MLP(latent_dim, [16], size, out_shape=event_shape)
    posterior = AmortizedPosterior(MLP(size, [16], 2 * latent_dim))
    latent = LatentVariableModel(
        GaussianPrior(latent_dim), posterior, GaussianLikelihood(decoder, scale)
    )
    return LatentEBM(latent, RATES)


def trainer(folder, *callbacks, **settings):
    return Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        inference_mode=False,
        log_every_n_steps=1,
        callbacks=list(callbacks),
        **settings,
    )


def test_push_forward_of_one_point_is_that_gaussian():
    points, weights = torch.zeros(1, 2), torch.zeros(1)
    log_prob = push_forward(points, weights, 0.5, BOX, 240)
    x = grid_points(BOX, 240, dtype=torch.float64)
    truth = -x.square().sum(1) / 0.5 - math.log(2 * math.pi * 0.25)
    near = truth > -10
    # sharing among cells of 0.05 widens the variance 0.25 by 0.000625: 0.25 % of up to 10 nats
    assert (log_prob - truth)[near].abs().max() < 0.03


def test_push_forward_of_a_linear_decoder_is_the_evidence():
    # z ~ N(0, I) on a quadrature, x = Az + σε: N(0, AAᵀ + σ²I)
    nodes = grid_points(BOX, 500, dtype=torch.float64)
    log_weights = (-nodes.square().sum(1) / 2).log_softmax(0)
    matrix = torch.tensor([[1.0, 0.2], [-0.4, 0.6]], dtype=torch.float64)
    log_prob = push_forward(nodes @ matrix.T, log_weights, 0.3, BOX, 300)
    covariance = matrix @ matrix.T + 0.09 * torch.eye(2, dtype=torch.float64)
    truth = MultivariateNormal(torch.zeros(2).double(), covariance)
    log_truth = truth.log_prob(grid_points(BOX, 300, dtype=torch.float64))
    assert float(kl_of_masses(log_truth, log_prob)) == pytest.approx(0, abs=1e-4)


def test_kl_of_masses_is_the_closed_form_between_gaussians():
    x = grid_points(BOX, 400, dtype=torch.float64)
    log_p = -x.square().sum(1) / 2 - math.log(2 * math.pi)
    log_q = -(x - 0.5).square().sum(1) / 4 - math.log(4 * math.pi)
    exact = 2 * 0.5 * (0.5 + 0.125 - 1 + math.log(2))  # per axis ½(1/2 + ¼/2 − 1 + ln 2)
    assert float(kl_of_masses(log_p, log_q)) == pytest.approx(exact, abs=1e-5)


def test_push_forward_refuses_a_grid_too_coarse():
    with pytest.raises(ValueError, match="raise resolution to 1200"):
        push_forward(torch.zeros(1, 2), torch.zeros(1), 0.01, BOX, 100)


def test_the_density_of_a_linear_vae_is_its_evidence():
    learner = vae((2,))
    weight = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    linear = nn.Linear(2, 2, bias=False)
    linear.weight.data.copy_(weight)
    learner.latent.likelihood.decoder = linear
    covariance = weight @ weight.T + 0.09 * torch.eye(2)
    truth = MultivariateNormal(torch.zeros(2).double(), covariance.double())
    log_truth = truth.log_prob(grid_points(BOX, 200, dtype=torch.float64))
    log_prob = learner.log_prob_on_grid(BOX, 200)
    assert float(kl_of_masses(log_truth, log_prob)) == pytest.approx(0, abs=1e-4)


def test_the_released_likelihood_has_a_column_of_its_own(tmp_path):
    data = DensityDataModule(EightGaussians(), 20, num_train=40, num_val=20, num_test=20)
    callback = Likelihood(5, released=True)
    run = trainer(tmp_path, callback, max_epochs=1)
    learner = vae((2,))
    run.fit(learner, datamodule=data)
    assert "val/released_log_likelihood" in run.callback_metrics
    assert "val/log_likelihood" not in run.callback_metrics
    assert "released" in str(callback.protocol)
    with pytest.raises(TypeError, match="Boltzmann has no released estimator"):
        callback.see(run, Boltzmann(), next(data.batches("val")), 0)


class Boltzmann(nn.Module):
    """Knows its likelihood, and has no other way to tell it."""

    def log_likelihood(self, x, num_samples=100, generator=None):
        return x.sum(1)

    def generator(self, *numbers):
        return None


def test_all_figures_of_images_are_logged_and_pictures_written(tmp_path):
    data = ImageDataModule("Synthetic", 8, 1, 16, num_synthetic=60)
    features = PixelFeatures((1, 8, 8))
    quality = SampleQuality(features, num=30)
    callbacks = [Samples(9), Reconstructions(8), quality, Likelihood(3)]
    run = trainer(tmp_path, *callbacks, max_epochs=2)
    learner = vae((1, 8, 8))
    run.fit(learner, datamodule=data)
    names = {"frechet", "precision", "recall", "density", "coverage", "reconstruction_error"}
    names |= {"log_likelihood", "log_likelihood_error", "loss", "prior", "reconstruction"}
    assert {f"val/{name}" for name in names} <= run.callback_metrics.keys()
    pictures = sorted(p.name for p in (tmp_path / "pictures").iterdir())
    assert pictures == [
        f"{name}_epoch_000{i}.png" for name in ("reconstructions", "samples") for i in (0, 1)
    ]
    assert quality.protocol["num_fake"] == 30
    assert quality.protocol["precision_recall"]["k"] == 3
    assert quality.protocol["density_coverage"]["k"] == 5
    assert callbacks[1].protocol["num_numbers"] == 64 * 6
    assert callbacks[3].protocol["estimator"] == "importance sampling, K=3"

    figures = run.test(learner, datamodule=data, verbose=False)[0]
    real = torch.cat([x for x, _ in data.batches("test")])
    error = (real - learner.reconstruct(real)).square().mean()
    assert figures["test/reconstruction_error"] == pytest.approx(float(error), rel=1e-5)
    assert (tmp_path / "pictures" / "samples_test.png").exists()


def test_evaluation_is_repeatable_and_does_not_move_the_global_generator(tmp_path):
    data = ImageDataModule("Synthetic", 8, 1, 16, num_synthetic=60)
    learner = vae((1, 8, 8))
    run = trainer(tmp_path, SampleQuality(PixelFeatures((1, 8, 8)), num=30), Likelihood(3))
    state = torch.get_rng_state()
    first = run.validate(learner, datamodule=data, verbose=False)
    torch.manual_seed(99)
    assert run.validate(learner, datamodule=data, verbose=False) == first
    torch.set_rng_state(state)


def test_the_inception_score_stands_beside_the_distance_if_asked(tmp_path):
    data = ImageDataModule("Synthetic", 8, 1, 16, num_synthetic=60)
    quality = SampleQuality(ClassifierFeatures("digits"), num=30, inception_score=True)
    run = trainer(tmp_path, quality)
    figures = run.validate(vae((1, 8, 8)), datamodule=data, verbose=False)[0]
    assert 1 <= figures["val/inception_score"] <= 10
    assert figures["val/inception_score_std"] >= 0
    with pytest.raises(TypeError, match="are no classifier's"):
        SampleQuality(PixelFeatures((1, 8, 8)), inception_score=True)


def test_the_distance_is_to_training_data_if_asked(tmp_path, monkeypatch):
    samples = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0)) - 0.5
    monkeypatch.setattr("eblvm.evaluation.draw", lambda *more: samples)
    data = ImageDataModule("Synthetic", 8, 1, 16, num_synthetic=60)
    features = PixelFeatures((1, 8, 8))
    learner, found = vae((1, 8, 8)), {}
    for to_training in (False, True):
        quality = SampleQuality(features, num=30, to_training=to_training)
        run = trainer(tmp_path, quality)
        found[to_training] = run.validate(learner, datamodule=data, verbose=False)[0]
    assert "reference_of_frechet" in quality.protocol
    metric = FrechetDistance(features)
    for x, _ in data.batches("train", in_order=True):
        metric.update(x, real=True)
    metric.update(samples, real=False)
    assert found[True]["val/frechet"] == pytest.approx(float(metric.compute()), rel=1e-5)
    assert found[True]["val/frechet"] != pytest.approx(found[False]["val/frechet"], rel=1e-3)
    assert found[True]["val/coverage"] == found[False]["val/coverage"]


def test_every_n_epochs_and_the_last(tmp_path):
    epochs = []

    class Count(Samples):
        def look(self, trainer, learner, stage):
            epochs.append(trainer.current_epoch)

    data = ImageDataModule("Synthetic", 8, 1, 16, num_synthetic=60)
    trainer(tmp_path, Count(every_n_epochs=3), max_epochs=5).fit(vae((1, 8, 8)), datamodule=data)
    assert epochs == [2, 4]
    run = trainer(tmp_path, Count(every_n_epochs=0), max_epochs=1)
    run.fit(vae((1, 8, 8)), datamodule=data)
    assert epochs == [2, 4]  # none of validation, one of a test
    run.test(vae((1, 8, 8)), datamodule=data, verbose=False)
    assert len(epochs) == 3
    with pytest.raises(ValueError, match="every_n_epochs is -1"):
        Count(every_n_epochs=-1)


def test_density_of_the_plane(tmp_path):
    data = DensityDataModule(EightGaussians(), 64, num_train=128, num_val=64, num_test=64)
    grid, modes, samples = GridDensity(resolution=150, num=500), Modes(200), SampleDensity(500)
    run = trainer(tmp_path, grid, modes, samples, max_epochs=1)
    run.fit(vae((2,)), datamodule=data)
    assert run.callback_metrics["val/kl"] > 0
    assert grid.protocol["kl"]["resolution"] == 150
    assert "4.95" in grid.protocol["kl"]["bounds"]
    assert samples.protocol == {n: v for n, v in grid.protocol.items() if n != "kl"}
    assert modes.protocol["num_samples"] == 200
    assert (tmp_path / "pictures" / "density_epoch_0000.png").exists()


class Flat(LightningModule):
    """An energy of the plane that is zero: its density hangs on the box alone."""

    def log_prob_on_grid(self, bounds, resolution):
        return energy_log_prob(lambda x: 0 * x[:, 0], bounds, resolution)

    def sample(self, num, generator=None, noise=False):
        return torch.zeros(num, 2)

    def generator(self, batch_idx=0, offset=0):
        return torch.Generator()


def test_the_box_of_normalization_is_stated_and_chosen(tmp_path, monkeypatch):
    data = DensityDataModule(EightGaussians(), 64, num_train=128, num_val=64, num_test=64)
    run, learner, logged = trainer(tmp_path), Flat(), {}
    run.datamodule, entropy = data, 2.83  # of the data, to two digits
    monkeypatch.setattr("eblvm.evaluation.gather", lambda learner, rows: rows)
    monkeypatch.setattr("eblvm.evaluation.log", lambda learner, stage, found: logged.update(found))
    side = 2 * 4.9505  # of the data's own box
    for box, area in ((None, (2 * side) ** 2), (8.0, 16.0**2)):
        GridDensity(resolution=200, num=10, box=box).look(run, learner, "test")
        assert float(logged["kl"]) == pytest.approx(math.log(area) - entropy, abs=0.01)
    with pytest.raises(ValueError, match=r"box is 3.0, and the data's own box is .*4\.95"):
        GridDensity(resolution=200, num=10, box=3.0).look(run, learner, "test")


def test_a_callback_that_does_not_fit_says_so(tmp_path):
    class Mute(LightningModule):
        def test_step(self, batch, index):
            pass

    data = ImageDataModule("Synthetic", 8, 1, 16, num_synthetic=60)
    with pytest.raises(TypeError, match=r"Reconstructions needs a learner .* Mute lacks one"):
        trainer(tmp_path, Reconstructions()).test(Mute(), datamodule=data, verbose=False)
    with pytest.raises(TypeError, match="GridDensity needs the data's own density"):
        trainer(tmp_path, GridDensity()).test(vae((1, 8, 8)), datamodule=data, verbose=False)


def test_image_grid_places_and_scales():
    images = torch.stack([torch.full((1, 2, 2), v) for v in (-1.0, 0.0, 1.0, 5.0)])
    grid = image_grid(images, 2, min_side=6)
    assert grid.shape == (1, 6, 6)
    assert grid[0, 0, 0] == 0 and grid[0, 0, 3] == 128 and grid[0, 3, 0] == 255
    assert image_grid(images, 2, min_side=12).shape == (1, 12, 12)


def test_samples_are_written_as_what_they_are(tmp_path):
    save_samples(torch.rand(4, 3, 8, 8), tmp_path / "images.png")
    save_samples(torch.rand(4, 2), tmp_path / "points.png")
    save_samples(torch.tensor([[2, 5], [2, 3]]), tmp_path / "tokens.txt")
    save_samples(torch.rand(4, 7), tmp_path / "any.pt")
    assert (tmp_path / "tokens.txt").read_text() == "2 5\n2 3\n"
    assert torch.load(tmp_path / "any.pt", weights_only=True).shape == (4, 7)
    for name in ("images.png", "points.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"shape \(4, 7\) cannot be written to x.png"):
        save_samples(torch.rand(4, 7), Path("x.png"))


def test_log_rows_are_where_they_belong(tmp_path):
    from pytorch_lightning.loggers import CSVLogger

    data = ImageDataModule("Synthetic", 8, 1, 16, num_synthetic=60)
    run = trainer(tmp_path, SampleQuality(PixelFeatures((1, 8, 8)), num=30), max_epochs=2)
    run.loggers = [CSVLogger(tmp_path, name="", version="")]
    run.fit(vae((1, 8, 8)), datamodule=data)
    with open(tmp_path / "metrics.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["val/frechet"]]
    assert [row["epoch"] for row in rows] == ["0", "1"]


class Copier:
    """A learner that has learned a data set by heart."""

    device = torch.device("cpu")

    def __init__(self, x):
        self.x, self.logged = x, {}

    def sample(self, num, generator=None, noise=False):
        return self.x[torch.randint(len(self.x), (num,), generator=generator)]

    def generator(self, batch_idx=0, offset=0):
        return torch.Generator().manual_seed(100 * offset + batch_idx)

    def all_gather(self, rows):
        return rows

    def log_dict(self, figures, sync_dist):
        self.logged |= figures


def test_stacked_modes_of_stacked_digits():
    """All classes of the stacks, and no more than the classifier's errors besides."""
    module = ImageDataModule("StackedMNIST", 28, 3, 2000, root=data_root("mnist"))
    x, label = next(module.batches("test"))
    one = x[label // 100 == 7]  # the first digit is a seven: at most 100 classes
    learner, whole = Copier(one), trainer(".")
    judge = StackedModes(num=2000)
    judge.look(whole, learner, "test")
    assert (judge.protocol["num_samples"], judge.protocol["features"]) == (2000, "classifier:mnist")
    classes = len(label[label // 100 == 7].unique())
    assert learner.logged["test/stacked_modes"] == pytest.approx(classes, abs=6)
    # 2,000 draws among so many classes, of 1,000
    assert learner.logged["test/stacked_kl"] == pytest.approx(math.log(1000 / classes), abs=0.4)
