"""The watch on divergence: what it sees, what it says, and how it goes back."""

import csv
import math
from collections import deque
from pathlib import Path

import pytest
import torch
import yaml
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import EMAWeightAveraging, LambdaCallback
from torch.optim.swa_utils import AveragedModel

from eblvm.checkpoint import load
from eblvm.cli import recipe_root
from eblvm.data import DensityDataModule, EightGaussians
from eblvm.energies import GaussianReference
from eblvm.models import DataEBM, DivergenceGuard
from eblvm.models.networks import MLPEnergy
from eblvm.negatives import NoiseNegatives, PersistentNegatives
from eblvm.samplers import Langevin
from eblvm.training import build

HEALTHY = {
    "energy_gap": 0.3,
    "energy_spread": 2.0,
    "data_scale": 1.0,
    "negative_scale": 1.1,
    "displacement": 0.5,
}


@pytest.mark.parametrize(
    ("signs", "words"),
    [
        ({"energy_gap": -50.0}, "Raise the sampler's num_steps"),
        ({"energy_gap": 50.0}, "overshoot. Lower the sampler's step_size"),
        ({"negative_scale": 9.0}, "narrow the reference"),
        ({"displacement": 9.0}, "Lower the sampler's step_size"),
        ({"buffer_age": 1e6}, "Raise restart_probability"),
    ],
)
def test_each_sign_has_its_lever_and_is_given_time(signs, words):
    guard = DivergenceGuard(patience=3, max_buffer_age=100.0)
    assert [guard.judge(HEALTHY) for _ in range(5)] == [None] * 5
    assert guard.judge(HEALTHY | signs) is None
    assert guard.judge(HEALTHY | signs) is None
    assert guard.judge(HEALTHY) is None  # a good look in between starts the count anew
    found = [guard.judge(HEALTHY | signs) for _ in range(3)]
    assert found[:2] == [None, None] and words in found[2]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_counts_at_once(value):
    assert "gradient_last is" in DivergenceGuard().judge(HEALTHY | {"gradient_last": value})


def test_one_row_has_no_spread_and_is_no_trouble():
    negatives = NoiseNegatives([1], Langevin(2, 0.1))
    model = DataEBM(MLPEnergy(1, [4]), negatives, {"energy": 1e-3})
    x = torch.tensor([[0.5], [1.5], [3.0]])
    for rows, chains in ((3, 3), (3, 1), (1, 3), (1, 1)):
        negatives.num_chains = chains
        model.terms((x[:rows], torch.zeros(rows)), torch.Generator().manual_seed(0))
        signs = {name: float(value) for name, value in model.vital_signs().items()}
        assert all(map(math.isfinite, signs.values())), (rows, chains)
        positive, negative = model._step[2:]
        deviations = [e.std(correction=0) for e in (positive, negative) if len(e) > 1]
        if deviations:  # their quadratic mean
            truth = math.sqrt(sum(float(d) ** 2 for d in deviations) / len(deviations))
            assert signs["energy_spread"] == pytest.approx(truth)
        else:
            assert "energy_spread" not in signs
    guard = DivergenceGuard(patience=1)
    far = {name: value for name, value in HEALTHY.items() if name != "energy_spread"}
    assert guard.judge(far | {"energy_gap": -50.0}) is None


def test_a_burst_of_a_gradient_is_seen_against_its_median():
    guard = DivergenceGuard(patience=1, max_gradient_growth=100)
    guard._norms["energy"] = deque([1.0, 2.0, 3.0] * 10 + [150.0])
    assert guard.judge(HEALTHY) is None
    guard._norms["energy"].append(250.0)
    assert "gradient of energy has norm 250" in guard.judge(HEALTHY)


def test_a_dead_energy_is_seen():
    guard = DivergenceGuard(patience=2)
    dead = HEALTHY | {"energy_gap": 0.0, "energy_spread": 0.0}
    assert guard.judge(dead) is None
    assert "units are dead" in guard.judge(dead)


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match="factor"):
        DivergenceGuard(factor=1.5)
    with pytest.raises(ValueError, match="patience"):
        DivergenceGuard(patience=0)


def quiet(folder, callbacks, **settings):
    """A trainer that writes nothing and looks at each step."""
    return Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=callbacks,
        **{"log_every_n_steps": 1, **settings},
    )


def diverging(folder, **guard):
    """The short-run recipe, made to diverge: an energy that learns far too fast for its chains."""
    recipe = yaml.safe_load((recipe_root() / "toy/shortrun_8gaussians.yaml").read_text())
    settings = recipe["model"]["init_args"]
    settings["learning_rates"] = {"energy": 0.3}
    settings.pop("scheduler", None)
    recipe["data"]["init_args"] |= {"num_train": 2560, "num_val": 20, "batch_size": 64}
    callbacks = [{"class_path": "eblvm.models.DivergenceGuard", "init_args": guard}]
    recipe["trainer"] = {
        "max_steps": 60,
        "max_epochs": -1,
        "log_every_n_steps": 1,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "callbacks": callbacks if guard else [],
    }
    recipe["monitor"] = "val/loss"
    path = folder / "diverging.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_run_that_diverges_is_stopped_by_default_with_the_lever(eblvm, tmp_path):
    stopped = eblvm("fit", "--config", diverging(tmp_path))
    assert stopped.status == 2
    assert "training diverges at step" in stopped.err
    assert "learning rate" in stopped.err or "step_size" in stopped.err
    assert "Traceback" not in stopped.err


def test_a_guard_that_goes_back_finishes_the_run_and_says_so(eblvm, tmp_path):
    recipe = diverging(tmp_path, returns=12, factor=0.2, keep_every=3, patience=3)
    done = eblvm("fit", "--config", recipe)
    assert done.status == 0, done.err
    assert "best:" in done.out
    (last,) = Path("runs").rglob("last.ckpt")
    checkpoint = torch.load(last)
    (events,) = (s["events"] for s in checkpoint["callbacks"].values() if "events" in s)
    assert 1 <= len(events) <= 12 and "Went back to a good state" in events[0]
    (group,) = checkpoint["optimizer_states"][0]["param_groups"]
    assert group["lr"] == pytest.approx(0.3 * 0.2 ** len(events))
    assert all(v.isfinite().all() for v in checkpoint["state_dict"].values())
    with next(Path("runs").rglob("metrics.csv")).open() as file:
        returns = [r["guard/returns"] for r in csv.DictReader(file) if r.get("guard/returns")]
    assert returns and float(returns[-1]) == len(events)


WATCHED = {  # recipe: what is said of negatives beyond any bound, or what only a gradient tells
    "toy/lebm_pinwheel": "the prior's chains escape",
    "toy/ldebm_pinwheel": "the prior's chains escape",
    "toy/svebm_pinwheel": "the prior's chains escape",
    "toy/bidvl_8gaussians": "samples escape. Lower the learning rates of the player",
    "toy/ddaebm_pinwheel": "samples escape. Lower the learning rates of the player",
    "toy/ddgan_pinwheel": "samples escape. Lower the learning rates of the player",
    "toy/cd_grbm_checkerboard": "chains escape",
    "toy/bidvl_grbm_checkerboard": "the gradient of pair has norm",
    "toy/exact_grbm_checkerboard": "the gradient of energy has norm",
    "toy/denoising_8gaussians": "the gradient of energy has norm",
}


@pytest.mark.parametrize("name", WATCHED)
def test_every_learner_of_an_energy_is_watched(name, eblvm, tmp_path):
    recipe = yaml.safe_load((recipe_root() / f"{name}.yaml").read_text())
    called = recipe["trainer"].get("callbacks", [])  # only what training cannot do without is kept
    recipe["trainer"]["callbacks"] = [c for c in called if "GeometricClustering" in c["class_path"]]
    (tmp_path / "watched.yaml").write_text(yaml.safe_dump(recipe))
    steps = ["--trainer.max_steps=25", "--trainer.max_epochs=-1", "--trainer.log_every_n_steps=1"]
    rest = ["--trainer.limit_val_batches=0", "--monitor=null"]
    rest += ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    bounds = (
        "{patience: 1, max_scale: 1.0e-6, max_displacement: 1.0e9, max_gradient_growth: 1.0e-6}"
    )
    guard = f"--trainer.callbacks+={{class_path: DivergenceGuard, init_args: {bounds}}}"
    stopped = eblvm("fit", "--config", tmp_path / "watched.yaml", *steps, *rest, guard)
    assert stopped.status == 2, stopped.err
    assert WATCHED[name] in stopped.err and "Traceback" not in stopped.err


def test_the_guard_is_on_where_an_energy_learns_and_nowhere_else():
    for name in [*WATCHED, "toy/shortrun_8gaussians"]:
        model, _ = build(name)
        assert [type(callback) for callback in model.configure_callbacks()] == [DivergenceGuard], (
            name
        )
    for name in ("toy/vae_pinwheel", "image/classifier_digits"):
        model, _ = build(name)
        assert model.configure_callbacks() == []


def test_a_prior_whose_chains_overshoot_stops_the_run_by_default(eblvm, tmp_path):
    kernel = "{class_path: eblvm.samplers.Langevin, init_args: {num_steps: 20, step_size: 2.05}}"
    sampler = f"--model.init_args.latent.init_args.prior.init_args.sampler={kernel}"
    run = ["--trainer.max_steps=60", "--trainer.max_epochs=-1", "--trainer.log_every_n_steps=1"]
    run += ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    stopped = eblvm("fit", "--config", "toy/lebm_pinwheel", *run, sampler)
    assert stopped.status == 2
    assert "training diverges at step" in stopped.err
    assert "Lower the sampler's step_size, or the learning rate of the prior" in stopped.err


@pytest.mark.filterwarnings("ignore")
def test_going_back_restores_both_players_and_lowers_the_rates_of_both(tmp_path):
    model, data = build("toy/bidvl_8gaussians")
    recorded = []

    def spoil(trainer, module, batch, batch_idx):
        if batch_idx == 5:
            with torch.no_grad():
                module.energy.state_dict()[next(iter(module.energy.state_dict()))].fill_(math.nan)

    def record(trainer, module, *rest):
        recorded.append([p.detach().clone() for p in module.parameters()])

    first = LambdaCallback(on_train_batch_start=spoil)
    last = LambdaCallback(on_train_batch_end=record)
    guard = DivergenceGuard(returns=1, keep_every=1)
    trainer = quiet(
        tmp_path, [first, guard, last], max_epochs=1, limit_train_batches=9, limit_val_batches=0
    )
    rates = [group["lr"] for o in model.configure_optimizers()[0] for group in o.param_groups]
    trainer.fit(model, data)
    # looks keep every state, the older of two is gone back to: from step 6 to that after step 4
    for back, kept in zip(recorded[5], recorded[3], strict=True):
        assert torch.equal(back, kept)
    assert all(p.isfinite().all() for weights in recorded for p in weights)
    found = [group["lr"] for o in trainer.optimizers for group in o.param_groups]
    assert found == pytest.approx([0.5 * rate for rate in rates])
    assert len(guard.events) == 1


def test_a_step_size_can_be_lowered_only_where_there_is_one(tmp_path):
    model, data = build("toy/bidvl_8gaussians")
    guard = DivergenceGuard(returns=1, lever="step_size")
    trainer = quiet(tmp_path, [guard], max_steps=1)
    with pytest.raises(ValueError, match="BiDVL has no chains whose step size"):
        trainer.fit(model, data)


@pytest.mark.filterwarnings("ignore")
def test_validation_is_no_look(tmp_path):
    # one batch of data far away, by which training would be judged to diverge
    class Shifted(DataEBM):
        def validation_step(self, batch, batch_idx):
            super().validation_step((batch[0] + 1e4, batch[1]), batch_idx)

    seen = []

    class Guard(DivergenceGuard):
        def judge(self, signs):
            seen.append(signs["data_scale"])
            return super().judge(signs)

    negatives = NoiseNegatives([2], Langevin(3, 0.1))
    model = Shifted(MLPEnergy(2, [8]), negatives, {"energy": 1e-3}, GaussianReference(3.0))
    quiet(tmp_path, [Guard(patience=1)], max_epochs=3, log_every_n_steps=2).fit(
        model, DensityDataModule(EightGaussians(), 32, num_train=128, num_val=8, num_test=8)
    )
    assert len(seen) == 6 and max(seen) < 10  # every other of twelve steps of training


def test_ages_tend_to_the_inverse_of_the_restart_probability():
    # visits since a chain began are geometric: mean 1/p, standard deviation √(1 − p)/p
    p, capacity = 0.1, 2000
    negatives = PersistentNegatives([1], Langevin(0, 0.1), capacity=capacity, restart_probability=p)
    for step in range(150):  # 75 visits of each state: (1 − p)⁷⁵ is 0.0004
        drawn = negatives(GaussianReference(1.0), 1000, torch.Generator().manual_seed(step))
        negatives.keep(drawn)
    ages = negatives.buffer.ages.double()
    assert abs(ages.mean() - 1 / p) < 4 * (1 - p) ** 0.5 / p * capacity**-0.5
    negatives.loss(drawn)
    age = float(negatives.diagnostics["buffer_age"])
    assert DivergenceGuard(patience=1).judge(HEALTHY | {"buffer_age": age}) is None
    complaint = DivergenceGuard(patience=1, max_buffer_age=5).judge(HEALTHY | {"buffer_age": age})
    assert "Raise restart_probability above 0.2" in complaint


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("lever", ["learning_rate", "step_size"])
@pytest.mark.parametrize("guard_first", [True, False])
def test_averaged_weights_are_as_if_the_bad_steps_had_not_been(lever, guard_first, tmp_path):
    negatives = NoiseNegatives([2], Langevin(3, 0.1))
    model = DataEBM(MLPEnergy(2, [8]), negatives, {"energy": 1e-2}, GaussianReference(3.0))
    recorded = []

    def spoil(trainer, module, optimizer):
        for parameter in module.parameters():
            parameter.grad.mul_(math.nan if trainer.global_step == 4 else 1.0)

    def record(trainer, module, *rest):
        recorded.append([p.detach().clone() for p in module.parameters()])

    first = LambdaCallback(on_before_optimizer_step=spoil)
    last = LambdaCallback(on_train_batch_end=record)
    average = EMAWeightAveraging(decay=0.9, use_buffers=False)
    both = [DivergenceGuard(returns=1, keep_every=1, lever=lever), average]
    quiet(tmp_path, [first, *both[:: 1 if guard_first else -1], last], max_steps=8).fit(
        model, DensityDataModule(EightGaussians(), 32, num_train=320, num_val=8, num_test=8)
    )
    # looks keep every state, the older of two is gone back to: from step 5 to that after step 3
    for back, kept in zip(recorded[4], recorded[2], strict=True):
        assert torch.equal(back, kept)
    by_hand, *others = [recorded[i - 1] for i in (1, 2, 3, 6, 7, 8)]
    for weights in others:
        by_hand = [0.9 * a + 0.1 * w for a, w in zip(by_hand, weights, strict=True)]
    for parameter, truth in zip(model.parameters(), by_hand, strict=True):  # averaged, at the end
        torch.testing.assert_close(parameter, truth)
    assert model.negatives.step_factor == (0.5 if lever == "step_size" else 1.0)


def test_a_lower_step_size_is_kept_in_the_checkpoint(eblvm, tmp_path):
    recipe = diverging(tmp_path, returns=12, lever="step_size", keep_every=3, patience=3)
    done = eblvm("fit", "--config", recipe, "--ema=0.9")
    assert done.status == 0, done.err
    (last,) = Path("runs").rglob("last.ckpt")
    checkpoint = torch.load(last)
    (events,) = (s["events"] for s in checkpoint["callbacks"].values() if "events" in s)
    assert events and "the chain's step size times 0.5" in events[0]
    for weights in (checkpoint["state_dict"], checkpoint["current_model_state"]):  # averaged, not
        assert float(weights["negatives.factor"]) == 0.5 ** len(events)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.3

    for weights in (checkpoint["state_dict"], checkpoint["current_model_state"]):
        weights["negatives._extra_state"] = weights.pop("negatives.factor")  # as it once was
    old = last.with_name("old.ckpt")
    torch.save(checkpoint, old)
    assert load(old).negatives.step_factor == 0.5 ** len(events)
    done = eblvm("fit", "--ckpt_path", old, "--trainer.max_steps=61")
    assert done.status == 0, done.err


def test_a_step_size_is_lowered_in_all_copies_of_the_chain():
    negatives = NoiseNegatives([1], Langevin(10, 0.4, noise_scale=0.0))
    negatives.step_factor = 0.5
    twin = NoiseNegatives([1], Langevin(10, 0.4, noise_scale=0.0))
    twin.load_state_dict(negatives.state_dict())
    assert twin.sampler.step_size == 0.2
    start = torch.ones(2, 1)
    expected = start * (1 - 0.2**2 / 2) ** 10
    torch.testing.assert_close(twin.sampler(GaussianReference(1.0), start), expected)

    once = {"_extra_state": torch.tensor(0.25, dtype=torch.float64)}  # its name in old checkpoints
    twin.load_state_dict(once)
    assert twin.step_factor == 0.25 and list(once) == ["_extra_state"]
    with pytest.raises(RuntimeError, match="factor"):
        twin.load_state_dict({})
    averaged = AveragedModel(twin)
    twin.step_factor = 0.1
    averaged.update_parameters(twin)
    assert averaged.module.step_factor == 0.1
    # read without waiting for a device, exact in any precision
    moved = twin.to("meta").to(torch.bfloat16)
    assert moved.step_factor == 0.1 and moved.origin.dtype == torch.bfloat16
