"""Trained models in use: verbs, conditional models, refinement and its callbacks."""

from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from eblvm import using
from eblvm.checkpoint import load
from eblvm.cli import UserError, recipe_root
from eblvm.conditions import GrayCondition, LabelCondition
from eblvm.energies import Energy, GaussianEnergy, MaskedEnergy
from eblvm.latent import LatentVariableModel, interpolate
from eblvm.likelihoods import GaussianLikelihood
from eblvm.models import DataEBM
from eblvm.models.networks import (
    ConditionalDecoder,
    ConditionalEncoder,
    ConditionalEnergy,
    ConvEnergy,
    SameDecoder,
    SameEncoder,
    TranslationDecoder,
)
from eblvm.negatives import AmortizedNegatives, NoiseNegatives
from eblvm.posteriors import AmortizedPosterior
from eblvm.priors import GaussianPrior
from eblvm.samplers import Langevin

F64 = torch.float64
seeded = torch.Generator().manual_seed


def test_interpolation_keeps_the_norm_and_meets_both_ends():
    z, other = torch.randn(5, 16, dtype=F64), torch.randn(5, 16, dtype=F64)
    other = other / other.norm(dim=1, keepdim=True) * z.norm(dim=1, keepdim=True)
    arc = interpolate(z, other, 7)
    assert arc.shape == (5, 7, 16)
    torch.testing.assert_close(arc[:, 0], z)
    torch.testing.assert_close(arc[:, -1], other)
    torch.testing.assert_close(arc.norm(dim=2), z.norm(dim=1)[:, None].expand(5, 7))
    line = interpolate(z, other, 3, spherical=False)
    torch.testing.assert_close(line[:, 1], (z + other) / 2)
    torch.testing.assert_close(interpolate(z, z, 4), z[:, None].expand(5, 4, 16))  # no angle


def test_chains_on_what_is_hidden_draw_from_the_exact_conditional():
    # x ~ N(0, Σ): given x₁ the rest is Gaussian with mean Σ₂₁ Σ₁₁⁻¹ x₁ and the Schur complement
    covariance = torch.tensor([[1.0, 0.8, 0.3], [0.8, 1.5, 0.2], [0.3, 0.2, 0.7]], dtype=F64)
    energy = GaussianEnergy(torch.zeros(3, dtype=F64), covariance)
    model = DataEBM(Shifted(energy), NoiseNegatives([3], Langevin(100, 0.3)).to(F64), {"energy": 1})
    visible = torch.tensor([True, False, False])
    x = torch.tensor([1.3, 9.0, 9.0], dtype=F64).expand(10_000, 3)
    filled = model.inpaint(x, visible, seeded(0))
    assert torch.equal(filled[:, 0], x[:, 0])
    mean = covariance[1:, 0] * 1.3
    schur = covariance[1:, 1:] - covariance[1:, :1] @ covariance[:1, 1:]
    torch.testing.assert_close(filled[:, 1:].mean(0), mean, rtol=0, atol=0.03)
    torch.testing.assert_close(
        filled[:, 1:].T.cov(), schur, rtol=0, atol=0.08
    )  # 4 % of it the unadjusted chain's
    # what is hidden is not looked at
    other = torch.where(visible, x, -5.0)
    assert torch.equal(model.inpaint(other, visible, seeded(0)), filled)
    masked = MaskedEnergy(energy, x, visible)
    assert torch.equal(masked(torch.zeros_like(x)), energy(torch.where(visible, x, 0.0)))


class Shifted(Energy):
    """A known energy with a parameter that does nothing, as learners want one."""

    def __init__(self, energy):
        super().__init__()
        self.energy = energy
        self.shift = nn.Parameter(torch.zeros((), dtype=F64))

    def forward(self, x):
        return self.energy(x) + self.shift


def labeled():
    def embedding():
        return nn.Sequential(nn.Embedding(10, 64), nn.Unflatten(1, (1, 8, 8)))

    vae = LatentVariableModel(
        GaussianPrior(3),
        AmortizedPosterior(ConditionalEncoder(SameEncoder(2, 8, [4], [4], [2], 6), embedding())),
        GaussianLikelihood(ConditionalDecoder(SameDecoder(13, 1, [4, 8], [4], [4, 4]), 10)),
    )
    return DataEBM(
        ConditionalEnergy(ConvEnergy(2, 8, [4], [4], [2]), embedding()),
        AmortizedNegatives(vae, Langevin(2, 0.1)),
        {"energy": 1e-3, "negatives": 1e-3},
        condition=LabelCondition(10),
    )


def colored():
    vae = LatentVariableModel(
        GaussianPrior(4),
        AmortizedPosterior(ConditionalEncoder(SameEncoder(4, 8, [4], [4], [2], 8))),
        GaussianLikelihood(TranslationDecoder(4, 1, 3, [4, 8], 1)),
    )
    return DataEBM(
        ConditionalEnergy(ConvEnergy(4, 8, [4], [4], [2])),
        AmortizedNegatives(vae, Langevin(2, 0.1)),
        {"energy": 1e-3, "negatives": 1e-3},
        condition=GrayCondition(8),
    )


@pytest.mark.parametrize("build", [labeled, colored])
def test_conditional_models_train_every_part_with_the_condition_of_the_data(build):
    model = build()
    x = torch.rand(6, 3 if build is colored else 1, 8, 8) * 2 - 1
    label = torch.tensor([1, 1, 2, 3, 5, 8])
    terms = model.terms((x, label), seeded(0))
    sum(term.mean() for term in terms.values()).backward()
    for name, parameter in model.named_parameters():
        if not name.endswith("energy.net.2.bias"):  # a constant of the energy
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    drawn = model._step[1]
    assert torch.equal(drawn.condition, model.condition(x, label))  # the same c on both sides
    condition = model.condition(x, label)
    assert model.sample(9, seeded(1), condition=condition).shape == (9, *x.shape[1:])
    assert model.reconstruct(x, seeded(1), condition=condition).shape == x.shape
    visible = torch.zeros(8, 8, dtype=torch.bool)
    assert model.inpaint(x, visible, seeded(1), condition=condition).shape == x.shape
    assert model.film(2, 2, seeded(1)).shape == (3, 2, *x.shape[1:])
    assert set(model.vital_signs()) >= {"gradient_first", "out_of_range", "kl_per_unit"}
    # rows keep their own condition: in another order, the same energies
    energies = model.potential(condition)(x)
    torch.testing.assert_close(model.potential(condition.flip(0))(x.flip(0)).flip(0), energies)
    other = condition.roll(1, 0)
    assert not torch.allclose(model.potential(other)(x), energies)


RECIPE = """
model:
  class_path: eblvm.models.DataEBM
  init_args:
    energy:
      class_path: eblvm.models.networks.MLPEnergy
      init_args: {in_dim: 64, hidden_dims: [8]}
    reference:
      class_path: eblvm.energies.GaussianReference
      init_args: {scale: 1.0}
    negatives:
      class_path: eblvm.negatives.AmortizedNegatives
      init_args:
        latent:
          class_path: eblvm.latent.LatentVariableModel
          init_args:
            prior:
              class_path: eblvm.priors.GaussianPrior
              init_args: {latent_dim: 3}
            posterior:
              class_path: eblvm.posteriors.AmortizedPosterior
              init_args:
                encoder:
                  class_path: eblvm.models.networks.MLP
                  init_args: {in_dim: 64, hidden_dims: [8], out_dim: 6}
            likelihood:
              class_path: eblvm.likelihoods.GaussianLikelihood
              init_args:
                decoder:
                  class_path: eblvm.models.networks.MLP
                  init_args: {in_dim: 3, hidden_dims: [8], out_dim: 64, out_shape: [1, 8, 8]}
        sampler:
          class_path: eblvm.samplers.Langevin
          init_args: {num_steps: 4, step_size: 0.1}
    learning_rates: {energy: 1.0e-3, negatives: 1.0e-3}
    energy_penalty: 1.0e-3
data:
  class_path: eblvm.data.ImageDataModule
  init_args: {dataset: Digits, image_size: 8, channels: 1, batch_size: 64}
trainer:
  limit_train_batches: 2
  max_epochs: 1
  accelerator: cpu
  limit_val_batches: 1
  enable_progress_bar: false
  callbacks:
    - class_path: eblvm.refining.FilmStrip
    - class_path: eblvm.evaluation.Reconstructions
    - class_path: eblvm.refining.ProposalQuality
      init_args:
        num: 20
        features:
          class_path: eblvm.metrics.ClassifierFeatures
          init_args: {weights: digits}
"""


def test_the_verbs(eblvm, tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = eblvm("fit", "--config", "recipe.yaml", "--threads=1", "--ema=0.9")
    assert done.status == 0, done.err
    (ckpt,) = Path("runs").rglob("best.ckpt")

    def size(path):
        with Image.open(path) as picture:
            return picture.size

    ratio = size_of(eblvm, ckpt, "sample", "--num", 4, "--strip", "--steps", 6, size=size)
    assert ratio == pytest.approx(7 / 4, rel=0.05)  # the start and six states; four chains
    ratio = size_of(eblvm, ckpt, "reconstruct", "--num", 5, size=size)
    assert ratio == pytest.approx(5 / 3, rel=0.05)  # data, decoded, refined
    for more in ([], ["--data", "--linear"]):
        ratio = size_of(eblvm, ckpt, "interpolate", "--num", 3, "--points", 6, *more, size=size)
        assert ratio == pytest.approx(6 / 3, rel=0.05)
    ratio = size_of(eblvm, ckpt, "inpaint", "--num", 3, "--hide", "center", size=size)
    assert ratio == pytest.approx(3 / 6, rel=0.05)

    for steps in ("0", "4"):
        eblvm("sample", "--ckpt", ckpt, "--num", 3, "--steps", steps, "--out", f"s{steps}.pt")
    eblvm("sample", "--ckpt", ckpt, "--num", 3, "--out", "plain.pt")
    assert torch.equal(torch.load("s4.pt"), torch.load("plain.pt"))
    assert not torch.equal(torch.load("s4.pt"), torch.load("s0.pt"))

    wrong = eblvm("sample", "--ckpt", ckpt, "--label", 3)
    assert wrong.status == 2 and "no such class" in wrong.err
    wrong = eblvm("inpaint", "--ckpt", ckpt, "--num", 0)
    assert wrong.status == 2 and "expected 1 or more" in wrong.err

    done = eblvm("predict", "--ckpt_path", ckpt)
    assert done.status == 0, done.err
    (scores,) = Path("runs").rglob("predictions.pt")
    assert torch.load(scores).shape == (300,)  # an energy for each test image
    assert any(Path("runs").rglob("chains_*.png"))


def test_no_more_than_a_portion_is_drawn_at_once(eblvm, monkeypatch):
    Path("recipe.yaml").write_text(RECIPE)
    done = eblvm("fit", "--config", "recipe.yaml", "--threads=1", "--trainer.callbacks=[]")
    assert done.status == 0, done.err
    (ckpt,) = Path("runs").rglob("best.ckpt")
    monkeypatch.setattr("eblvm.using.CHUNK", 3)
    drawn = []
    draw = DataEBM.draw
    monkeypatch.setattr(DataEBM, "draw", lambda *a, **k: drawn.append(a[1]) or draw(*a, **k))

    def draws(*more):
        drawn.clear()
        done = eblvm("sample", "--ckpt", ckpt, "--num", 7, "--out", "x.pt", *more)
        assert done.status == 0, done.err
        assert drawn == [3, 3, 1]
        return torch.load("x.pt")

    plain, refined = draws(), draws("--steps", 4)
    assert plain.shape == (7, 1, 8, 8) and torch.equal(refined, plain)  # 4 as in training
    strips = draws("--strip")
    assert strips.shape == (7, 5, 1, 8, 8)
    torch.testing.assert_close(strips[:, -1], plain)


def test_a_path_between_data_has_one_class(eblvm):
    recipe = yaml.safe_load((recipe_root() / "image/cvae_ebm_digits.yaml").read_text())
    recipe["trainer"] = yaml.safe_load(RECIPE)["trainer"] | {"callbacks": []}
    Path("classes.yaml").write_text(yaml.safe_dump(recipe | {"monitor": "val/loss"}))
    done = eblvm("fit", "--config", "classes.yaml")
    assert done.status == 0, done.err
    (ckpt,) = Path("runs").rglob("last.ckpt")
    drawing = ["--data", "--points", 3, "--steps", 0, "--out", "paths.pt"]
    done = eblvm("interpolate", "--ckpt", ckpt, "--num", 12, *drawing)
    assert done.status == 0, done.err
    paths = torch.load("paths.pt")
    assert paths.shape == (12, 3, 1, 8, 8)

    model = load(ckpt, "cpu")
    x, label = using.test_data(str(ckpt), 300, model)
    own = model.decode(model.encode(x, None, label), label).flatten(1)
    ends = paths[:, [0, -1]].flatten(0, 1).flatten(1)
    distance, which = torch.cdist(ends.double(), own.double()).min(1)
    assert distance.max() < 1e-4  # both ends are what becomes of a datum under its own class
    assert len(set(which.tolist())) == 24
    first, last = label[which].view(12, 2).T
    assert torch.equal(first, last) and len(first.unique()) > 3
    middle = model.decode(
        interpolate(*(model.encode(x[w], None, first) for w in which.view(12, 2).T), 3)[:, 1], first
    )
    torch.testing.assert_close(paths[:, 1], middle)

    wrong = eblvm("interpolate", "--ckpt", ckpt, "--num", 200, *drawing)
    assert wrong.status == 2 and "pairs of one class" in wrong.err
    with pytest.raises(UserError, match="a condition each"):
        using.pairs("none.ckpt", 2, colored())


def size_of(eblvm, ckpt, verb, *arguments, size):
    """Width over height of the picture that a verb makes."""
    done = eblvm(verb, "--ckpt", ckpt, *arguments, "--out", f"{verb}.png")
    assert done.status == 0, done.err
    width, height = size(f"{verb}.png")
    return width / height


def test_verbs_say_what_a_model_cannot_do(eblvm, tiny, tmp_path):
    done = eblvm("fit", "--config", tiny, "--trainer.max_epochs=1")
    assert done.status == 0, done.err
    (ckpt,) = Path("runs").rglob("last.ckpt")
    wrong = eblvm("inpaint", "--ckpt", ckpt)
    assert wrong.status == 2 and "for energies of data" in wrong.err
    wrong = eblvm("sample", "--ckpt", ckpt, "--steps", 3)
    assert wrong.status == 2 and "for energies of data" in wrong.err
    assert eblvm("interpolate", "--ckpt", ckpt, "--num", 2, "--out", "i.png").status == 0
    assert eblvm("reconstruct", "--ckpt", ckpt, "--num", 2, "--out", "r.png").status == 0

    recipe = yaml.safe_load(RECIPE)
    settings = recipe["model"]["init_args"]
    chain = settings["negatives"]["init_args"]["sampler"]
    settings["negatives"] = {
        "class_path": "eblvm.negatives.NoiseNegatives",
        "init_args": {"event_shape": [1, 8, 8], "sampler": chain},
    }
    settings["learning_rates"].pop("negatives")
    recipe["trainer"]["callbacks"] = []
    Path("noise.yaml").write_text(yaml.safe_dump(recipe))
    assert eblvm("fit", "--config", "noise.yaml", "--runs=other").status == 0
    (ckpt,) = Path("other").rglob("last.ckpt")
    wrong = eblvm("reconstruct", "--ckpt", ckpt)
    assert wrong.status == 2 and "has no encoder" in wrong.err
    wrong = eblvm("interpolate", "--ckpt", ckpt)
    assert wrong.status == 2 and "nothing to walk between" in wrong.err
    assert eblvm("inpaint", "--ckpt", ckpt, "--out", "p.png").status == 0
