"""Geometric clustering: its steps on points with known clusters, and its place in a run."""

import csv
import itertools
from pathlib import Path

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer

from eblvm.clustering import (
    GeometricClustering,
    LabeledSubset,
    balanced_order,
    contiguous,
    kmeans,
    matched,
    whitened,
)
from eblvm.data import DensityDataModule, EightGaussians, seeded_generator
from eblvm.energies import SymbolVectorTimeEnergy
from eblvm.latent import LatentVariableModel
from eblvm.likelihoods import GaussianLikelihood
from eblvm.models import LatentEBM
from eblvm.models.networks import MLP, ResidualTimeNet
from eblvm.posteriors import AmortizedPosterior
from eblvm.priors import DiffusionEnergyPrior
from eblvm.regularizers import CrossEntropy, FewLabels
from eblvm.schedules import RecoverySchedule

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
}


def test_whitened_components_are_uncorrelated_and_of_unit_variance():
    x = torch.randn(500, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64) + 3
    y = whitened(x, 3)
    torch.testing.assert_close(y.T.cov(), torch.eye(3).double())
    # against scikit-learn's, up to the signs of the directions
    from sklearn.decomposition import PCA

    theirs = torch.from_numpy(PCA(3, whiten=True).fit_transform(x.numpy()))
    torch.testing.assert_close(y.abs(), theirs.abs())
    with pytest.raises(ValueError, match="num_components is 5 for 500 points of 4 numbers"):
        whitened(x, 5)


def test_kmeans_finds_separate_clusters():
    centers = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]], dtype=torch.float64)
    truth = torch.arange(300) % 3
    x = centers[truth] + torch.randn(300, 2, dtype=torch.float64)
    # random first points may share a cluster: then the best of some seeds
    runs = [kmeans(x, 3, generator=seeded_generator(seed)) for seed in range(8)]
    found, label = min(runs, key=lambda run: float((x - run[0][run[1]]).square().sum()))
    assert len({(int(a), int(b)) for a, b in zip(truth, label, strict=True)}) == 3
    for k in range(3):  # centers are the means of their points
        torch.testing.assert_close(found[k], x[label == k].mean(0))


def test_kmeans_does_not_get_worse():
    x = torch.randn(200, 3, dtype=torch.float64)
    costs = []
    for n in range(8):
        centers, label = kmeans(x, 10, n, seeded_generator(2021))
        costs.append(float((x - centers[label]).square().sum()))
    assert all(b <= a + 1e-9 for a, b in itertools.pairwise(costs))
    assert costs[-1] < 0.8 * costs[0]


def test_kmeans_splits_the_largest_for_an_empty_cluster():
    # three first centers on one point: two of them lose everything at once
    x = torch.cat([torch.zeros(10, 2), torch.randn(50, 2) + 5]).double()
    for seed in range(10):
        _, label = kmeans(x, 3, 20, seeded_generator(seed))
        assert len(label.unique()) == 3
    with pytest.raises(ValueError, match="num_clusters is 61 for 60 points"):
        kmeans(x, 61)


def test_labels_without_gaps():
    assert contiguous(torch.tensor([5, 2, 5, 9])).tolist() == [1, 0, 1, 2]


def test_matching_undoes_a_permutation():
    label = torch.randint(6, (400,))
    permutation = torch.randperm(6)
    noisy = permutation[label].clone()
    noisy[:40] = torch.randint(6, (40,))
    assert (matched(noisy, label, 6) == label).float().mean() > 0.85
    # as many agreements as any permutation gives
    best = max(
        int((torch.tensor(p)[noisy] == label).sum()) for p in itertools.permutations(range(6))
    )
    assert int((matched(noisy, label, 6) == label).sum()) == best


def test_balanced_order_has_equal_shares():
    label = torch.tensor([0] * 70 + [1] * 20 + [2] * 9)
    order = balanced_order(label, seeded_generator(0))
    assert len(order) == 99
    count = torch.bincount(label[order])
    assert count.sum() == 99 and count.max() == 34 and count.min() >= 31  # 34 each, cut to 99
    drawn = order[label[order] == 0]
    assert len(drawn.unique()) == len(drawn)  # without replacement where there are enough
    assert not torch.equal(order, order.sort()[0])


def ldebm(num_steps=2):
    torch.manual_seed(0)
    net = ResidualTimeNet(2, 8, width=8, num_blocks=1)
    prior = DiffusionEnergyPrior(
        2, SymbolVectorTimeEnergy(net), RecoverySchedule(), num_steps=num_steps
    )
    latent = LatentVariableModel(
        prior, AmortizedPosterior(MLP(2, [8], 4)), GaussianLikelihood(MLP(2, [8], 2))
    )
    rates = {"prior": 1e-3, "posterior": 1e-3, "likelihood": 1e-3}
    return LatentEBM(latent, rates, regularizers=[CrossEntropy(0.05, pseudo=True)])


def points(**settings):
    return DensityDataModule(
        EightGaussians(), batch_size=10, num_train=80, num_val=10, num_test=10, **settings
    )


class Watched(LatentEBM):
    """Keeps the batches of training."""

    def training_step(self, batch, batch_idx):
        self.seen.append((self.current_epoch, batch))
        return super().training_step(batch, batch_idx)


def test_training_batches_carry_pseudo_labels_in_a_balanced_order():
    model, data = ldebm(), points()
    model.__class__, model.seen = Watched, []
    clustering = GeometricClustering(8, num_components=2)
    before = model.encode(data.dataset("train").columns[0])
    Trainer(**QUIET, max_epochs=1, callbacks=[clustering]).fit(model, data)
    label = clustering.label
    assert torch.equal(label, clustering.cluster(before))  # of the posterior before the epoch
    assert clustering.epoch == 0
    x, given = (torch.cat(column) for column in zip(*[b for _, b in model.seen], strict=True))
    rows = torch.cdist(x, data.dataset("train").columns[0]).argmin(1)
    assert torch.equal(label[rows], given)
    count = torch.bincount(given, minlength=int(label.max()) + 1)
    assert count.max() - count.min() <= 8  # equal shares, cut to 80
    assert torch.equal(rows, balanced_order(label, seeded_generator(2021, 0)))
    for _, (_, own) in zip(range(1), data.batches("val"), strict=False):
        assert own.max() <= 7  # evaluation keeps the data's labels


def test_clusters_are_of_points_on_the_sphere():
    """Two rays: the distance from the mean plays no part."""
    angle = torch.tensor([0.3, 1.9, 3.5, 5.1])[torch.arange(400) % 4]
    radius = 0.5 + 3 * torch.rand(400)
    z = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    found = []
    for seed in range(8):  # random first points may share a ray
        label = GeometricClustering(4, num_components=2, seed=seed).cluster(z)
        found.append(len({(i % 4, int(k)) for i, k in enumerate(label)}))
    assert min(found) == 4


def test_every_few_epochs_and_unbalanced():
    model, data = ldebm(), points()
    clustering = GeometricClustering(8, 2, balanced=False, every_n_epochs=2, match=True)
    found = []
    clustering.cluster = lambda z: (found.append(1), GeometricClustering.cluster(clustering, z))[1]
    trainer = Trainer(**QUIET, max_epochs=3, callbacks=[clustering])
    trainer.fit(model, data)
    assert len(found) == 2
    assert trainer.train_dataloader.sampler.order is None


def test_what_does_not_go_with_it_is_explained():
    class Other(LightningModule):
        def configure_optimizers(self):
            return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))])

        def training_step(self, batch, batch_idx):
            return None

        def validation_step(self, batch, batch_idx):
            return None

    settings = {**QUIET, "max_epochs": 1, "limit_val_batches": 0}
    trainer = Trainer(**settings, callbacks=[GeometricClustering(8, 2)])
    with pytest.raises(TypeError, match="Other has none"):
        trainer.fit(Other(), points())
    trainer = Trainer(**settings, callbacks=[GeometricClustering(8, 2)])
    with pytest.raises(TypeError, match=r"come from an eblvm\.data\.DataModule"):
        loader = torch.utils.data.DataLoader([(torch.zeros(2), 0)] * 4)
        trainer.fit(ldebm(), loader, loader)


def test_first_labels_of_each_class_are_learned_from():
    """With few labels: the first of each class in file order, and batches of these only."""
    model, data = ldebm(), points()
    few = FewLabels(1.0, batch_size=16)
    model.regularizers = [few]
    Trainer(**QUIET, max_epochs=1, callbacks=[LabeledSubset(2)]).fit(model, data)
    x, label = data.dataset("train").columns
    rows = sorted(i for y in range(8) for i in (label == y).nonzero()[:2, 0].tolist())
    assert torch.equal(few.subset[0], x[rows]) and torch.equal(few.subset[1], label[rows])

    inference = model.latent.infer(x[:5])
    model.train()
    value = few(model.latent, (x[:5], None), inference, seeded_generator(1))
    drawn = torch.tensor(rows)[torch.randint(16, (16,), generator=seeded_generator(1))]
    logits = model.latent.prior.symbol_logits(model.encode(x[drawn]))
    exact = torch.nn.functional.cross_entropy(logits, label[drawn])
    torch.testing.assert_close(value, exact, rtol=1e-2, atol=1e-2)  # one power iteration apart
    model.eval()
    assert few(model.latent, (x[:5], None), inference) == 0


def test_few_labels_need_each_other():
    model = ldebm()
    model.regularizers = [FewLabels(1.0)]
    inference = model.latent.infer(torch.zeros(2, 2))
    with pytest.raises(RuntimeError, match="FewLabels has no labeled subset; add"):
        model.regularizers[0](model.latent, (None, None), inference)
    trainer = Trainer(**QUIET, max_epochs=1, callbacks=[LabeledSubset(1)])
    model.regularizers = []
    with pytest.raises(TypeError, match="LabeledSubset found no regularizer FewLabels"):
        trainer.fit(model, points())
    with pytest.raises(ValueError, match="per_class is 0"):
        LabeledSubset(0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        FewLabels(1.0, 0)


def test_cross_entropy_against_labels_that_nothing_gives_does_not_start(tmp_path):
    pseudo, own = CrossEntropy(1.0, pseudo=True), CrossEntropy(1.0)
    cases = [
        (pseudo, False, [], r"`pseudo: true`, and nothing gives.* Add .*GeometricClustering"),
        (own, True, [], r"none of the 80 training data has one. Choose data with labels, set"),
        (own, False, [], None),
        (own, True, [GeometricClustering(8, 2)], None),
        (pseudo, True, [GeometricClustering(8, 2)], None),
    ]
    for term, hidden, callbacks, message in cases:
        model, data = ldebm(), points()
        model.regularizers = [term]
        if hidden:
            data.dataset("train").columns[1].fill_(-1)
        trainer = Trainer(**QUIET, max_epochs=1, callbacks=callbacks)
        if message is None:
            trainer.fit(model, data)
        else:
            with pytest.raises(ValueError, match=message):
                trainer.fit(model, data)
            assert trainer.global_step == 0
    few, data = ldebm(), points()
    few.regularizers = [FewLabels(1.0)]
    data.dataset("train").columns[1].fill_(-1)
    with pytest.raises(ValueError, match="LabeledSubset found no labeled training datum"):
        Trainer(**QUIET, max_epochs=1, callbacks=[LabeledSubset(1)]).fit(few, data)


LDEBM = Path(__file__).with_name("tiny_ldebm.yaml")


@pytest.mark.parametrize("steps", [4, 6], ids="after {} steps".format)
def test_a_resumed_run_ends_where_the_uninterrupted_one_does(steps, eblvm):
    """Bit for bit: labels, power iterations, noise levels and chains included."""
    flags = ["--trainer.max_epochs=3", "--trainer.log_every_n_steps=1"]
    assert eblvm("fit", "--config", LDEBM, *flags).status == 0
    assert eblvm("fit", "--config", LDEBM, *flags, f"--trainer.max_steps={steps}").status == 0
    last = Path("runs/tiny_ldebm/version_1/checkpoints/last.ckpt")
    assert torch.load(last)["global_step"] == steps
    done = eblvm("fit", "--ckpt_path", last, "--trainer.max_steps=-1")
    assert done.status == 0, done.err
    whole = torch.load(Path("runs/tiny_ldebm/version_0/checkpoints/last.ckpt"))
    resumed = torch.load(last)
    assert whole["global_step"] == resumed["global_step"] == 12
    for name, value in whole["state_dict"].items():
        assert torch.equal(value, resumed["state_dict"][name]), name
    (one,), (other,) = (
        [v for k, v in c["callbacks"].items() if "Geometric" in k] for c in (whole, resumed)
    )
    assert torch.equal(one["label"], other["label"]) and one["epoch"] == other["epoch"]
    assert logged("runs/tiny_ldebm/version_0") == logged("runs/tiny_ldebm/version_1")


def logged(run):
    """What every step logs; of terms that a step lacks Lightning repeats the last value."""
    names = ("epoch", "step", "train/loss", "train/reconstruction", "train/kl_weight", "val/loss")
    with open(Path(run) / "metrics.csv") as file:
        return [[row[name] for name in names] for row in csv.DictReader(file)]
