"""The learner of energies of data: its grid density, its rates, and exact resuming."""

import math
import re
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from torch import nn

from eblvm.cli import recipe_head, recipe_root
from eblvm.data import DensityDataModule, EightGaussians
from eblvm.energies import Energy, GaussianReference
from eblvm.metrics import grid_points
from eblvm.models import DataEBM
from eblvm.models.networks import ConvEnergy, MLPEnergy
from eblvm.negatives import NoiseNegatives, PersistentNegatives
from eblvm.samplers import Langevin
from eblvm.training import build


class Scaled(Energy):
    """E(x) = ½ κ ‖x‖²."""

    def __init__(self):
        super().__init__()
        self.kappa = nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        return 0.5 * self.kappa * x.square().sum(1)


def test_density_on_the_grid_is_the_normalized_one():
    # ½·3‖x‖² beside a reference of precision 1 is a Gaussian of precision 4
    negatives = NoiseNegatives([2], Langevin(1, 0.1))
    model = DataEBM(Scaled(), negatives, {"energy": 1e-3}, reference=GaussianReference(1.0))
    bounds = ((-1.0, 1.0), (-1.0, 1.0))  # much lies outside, and counts
    log_prob = model.log_prob_on_grid(bounds, 100)
    points = grid_points(bounds, 100, dtype=torch.float64)
    exact = -2 * points.square().sum(1) + math.log(4 / (2 * math.pi))
    torch.testing.assert_close(log_prob, exact, rtol=0, atol=5e-3)  # mass beyond the wider box


def fit(folder, max_epochs, ckpt=None):
    torch.manual_seed(0)
    negatives = PersistentNegatives([2], Langevin(3, 0.1), capacity=100, restart_probability=0.2)
    model = DataEBM(
        MLPEnergy(2, [16]),
        negatives,
        {"energy": 1e-2},
        reference=GaussianReference(3.0),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(
            optimizer, 0.98 ** (1 / 20)
        ),
    )
    data = DensityDataModule(EightGaussians(), 32, num_train=128, num_val=32, num_test=32)
    trainer = Trainer(
        max_epochs=max_epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(model, data, ckpt_path=ckpt)
    return trainer, model


@pytest.mark.filterwarnings("ignore")
def test_resumed_persistent_chains_end_where_the_uninterrupted_ones_do(tmp_path):
    _, whole = fit(tmp_path, 4)
    trainer, _ = fit(tmp_path, 2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer, resumed = fit(tmp_path, 4, tmp_path / "half.ckpt")
    for (name, one), other in zip(
        whole.state_dict().items(), resumed.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other), name
    assert whole.negatives.buffer.ages.max() > 1
    (group,) = trainer.optimizers[0].param_groups
    assert group["lr"] == pytest.approx(1e-2 * 0.98 ** (4 / 20))


def test_the_published_recipe_decays_as_released():
    # × 0.98^(epoch/20): the published checkpoint, at epoch 3000, ends near 4.3e-4
    recipe = yaml.safe_load((recipe_root() / "image/vae_ebm_cifar10.yaml").read_text())
    settings = recipe["model"]["init_args"]
    gamma, rate = settings["scheduler"]["init_args"]["gamma"], settings["learning_rates"]["energy"]
    assert rate * gamma**3000 == pytest.approx(4.3467e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("data", "trained"), [("cifar10", 15), ("mnist", 50), ("fashion_mnist", 50)]
)
def test_samples_of_the_published_recipes_have_the_released_number_of_steps(data, trained):
    recipe = yaml.safe_load((recipe_root() / f"image/vae_ebm_{data}.yaml").read_text())
    settings = recipe["model"]["init_args"]
    assert settings["sampling_steps"] == 30  # of the released sampling call, for every data set
    assert settings["negatives"]["init_args"]["sampler"]["init_args"]["num_steps"] == trained


def products(network, *inputs):
    """Multiply–accumulates of one row by the definition of each layer, without computing any."""
    counts = []

    def count(layer, inputs, output):
        many = inputs[0] if isinstance(layer, nn.ConvTranspose2d) else output
        counts.append(many[0].numel() * layer.weight[0].numel())

    layers = [
        m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    ]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    network(*inputs)
    for hook in hooks:
        hook.remove()
    return sum(counts)


@pytest.mark.parametrize("data", ["cifar10", "mnist", "fashion_mnist", "celeba64"])
def test_the_cost_that_a_recipe_states_is_that_of_its_networks(data):
    name = f"image/vae_ebm_{data}"
    stated = recipe_head(recipe_root() / f"{name}.yaml")["cost"]
    model, module = build(name)
    model.to("meta")
    latent, batch = model.negatives.latent, module.batch_size
    chains, steps = model.negatives.num_chains or batch, model.negatives.sampler.num_steps
    x = torch.empty(2, *module.event_shape, device="meta")
    z = torch.empty(2, latent.prior.latent_dim, device="meta")
    energy, encoder = products(model.energy, x), products(latent.posterior.encoder, x)
    decoder = products(latent.likelihood.decoder, z)
    chain = chains * steps * 2 * energy  # a gradient in x is a forward and half a backward pass
    updates = 3 * ((batch + chains) * energy + chains * (encoder + decoder))
    whole = chain + updates + chains * decoder
    assert f"{whole / 1e12:.2g}" == f"{float(re.search(r'([0-9.]+) tera-MAC', stated)[1]):.2g}"
    assert f"{100 * chain / whole:.0f} %" in stated
    assert f"{chains} chains of {steps} steps" in stated


def test_channels_last_agrees_to_rounding():
    def build(channels_last):
        torch.manual_seed(0)
        energy = ConvEnergy(3, 8, [8, 8], [3, 4], [1, 2], activation=nn.SiLU)
        negatives = NoiseNegatives([3, 8, 8], Langevin(5, 0.1))
        return DataEBM(energy, negatives, {"energy": 1e-3}, channels_last=channels_last)

    x = torch.rand(4, 3, 8, 8)
    first, last = build(False), build(True)
    assert last.energy.net[0].weight.is_contiguous(memory_format=torch.channels_last)
    seeded = torch.Generator().manual_seed
    terms = [m.terms((x, torch.zeros(4)), seeded(0))["contrast"] for m in (first, last)]
    torch.testing.assert_close(*terms, rtol=1e-4, atol=1e-5)


def test_a_guard_of_the_recipe_replaces_the_default():
    from eblvm.models import DivergenceGuard

    negatives = NoiseNegatives([2], Langevin(1, 0.1))
    model = DataEBM(MLPEnergy(2, [4]), negatives, {"energy": 1e-3})
    assert [type(c) for c in model.configure_callbacks()] == [DivergenceGuard]
    model.trainer = Trainer(
        accelerator="cpu", logger=False, callbacks=[DivergenceGuard(patience=9)]
    )
    assert model.configure_callbacks() == []


def test_averaged_weights_leave_the_states_of_a_buffer_as_they_are(eblvm):
    overrides = ["--trainer.max_epochs=1", "--data.init_args.num_train=512", "--ema=0.9"]
    overrides += ["--trainer.callbacks=[]", "--monitor=val/loss", "--runs=runs"]
    overrides += ["--model.init_args.negatives.init_args.capacity=256"]
    done = eblvm("fit", "--config", "toy/persistent_8gaussians", *overrides)
    assert done.status == 0, done.err
    (path,) = Path("runs").rglob("last.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    averaged, raw = checkpoint["state_dict"], checkpoint["current_model_state"]
    same = {name for name in raw if torch.equal(averaged[name], raw[name])}
    assert "negatives.buffer.states" in same
    assert not same & {name for name in raw if name.endswith("weight")}
