"""`eblvm diagnose`: the figures are those of the chain, and they tell a short chain from a long."""

import json
import math
from pathlib import Path

import pytest
import torch

from eblvm import diagnosis
from eblvm.checkpoint import load
from eblvm.cli import UserError
from eblvm.samplers import HMC, MALA, ChainSetup, Langevin, ParallelTempering, diagnostics


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def fitted(folder, config, *overrides):
    """The checkpoint of a run of two steps."""
    from eblvm.cli import main

    short = ["--trainer.max_steps=2", "--trainer.max_epochs=1", "--data.num_synthetic=40"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "0")
        patch.setattr("sys.argv", ["eblvm"])
        runs = ["--runs", str(folder / "runs")]
        main(["fit", "--config", str(config), *runs, *short, *overrides])
    (ckpt,) = folder.glob("runs/tiny/version_*/checkpoints/last.ckpt")
    return ckpt


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_path):
    return fitted(tmp_path_factory.mktemp("trained"), tiny_path)


def exact(num, generator):
    """Starts that are draws of N(0, I) already."""
    return torch.randn(num, 2, dtype=torch.float64, generator=generator)


def far(num, generator):
    return torch.full((num, 2), 6.0, dtype=torch.float64)


def gaussian(x):
    return 0.5 * x.square().sum(-1)


def test_command_prints_and_writes_what_the_report_says(eblvm, trained):
    few = ("--num-chains", 5, "--num-steps", 40, "--seed", 3, "--device", "cpu")
    done = eblvm("diagnose", "--ckpt", trained, *few)
    assert done.status == 0 and not done.err
    run = trained.parents[1]
    content = json.loads((run / "diagnose.json").read_text(), parse_constant=pytest.fail)
    assert content["seed"] == 3 and content["num_chains"] == 5
    assert list(content["chains"]) == ["prior", "posterior"]

    model = load(trained, "cpu")
    generator = seeded(3)
    for name, setup in model.chains(generator).items():
        stored = content["chains"][name]
        start = setup.start(5, generator)
        short = setup.sampler.run(setup.energy, start, generator)
        step_size = setup.sampler.step_size
        rest = Langevin(38, step_size).run(setup.energy, short.x, generator)
        report = diagnostics.report(rest.trajectory[18:])
        for key, value in report.items():
            assert stored["long"][key] == pytest.approx(value), key
        assert stored["long"]["energy_mean"] == pytest.approx(float(rest.energies[18:].mean()))
        moved = (short.x - start).square().sum(-1).sqrt().mean()
        assert stored["short"]["displacement"] == pytest.approx(float(moved))
        assert stored["short"]["energy_last_tenth"] == pytest.approx(
            float(short.energies[-1:].mean())
        )
        gap = setup.energy(short.x).detach().mean() - rest.energies[18:].mean()
        assert stored["energy_gap"] == pytest.approx(float(gap), abs=1e-5)
        assert (stored["training_steps"], stored["long_from"], stored["num_steps"]) == (2, 21, 40)
        assert "rhat_max" not in stored["short"]  # two draws say nothing of it
        assert stored["reading"] in done.out and stored["sampler"] in done.out
        assert f"{stored['long']['rhat_max']:.4g}" in done.out
        assert (run / f"diagnose_{name}.png").stat().st_size > 5000
    assert "split R-hat, worst" in done.out and str(run / "diagnose.json") in done.out


def test_out_seed_and_the_same_again(eblvm, trained):
    few = ("diagnose", "--ckpt", trained, "--num-chains", 2, "--num-steps", 20)
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert eblvm(*few, "--out", out, "--seed", seed).status == 0
    a, b, c = (Path(out, "diagnose.json").read_text() for out in "abc")
    assert a == b
    assert json.loads(a)["chains"]["prior"]["long"] != json.loads(c)["chains"]["prior"]["long"]


def test_errors_are_one_message_and_status_2(eblvm, trained, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    for arguments, words in (
        (["--ckpt", "none.ckpt"], "there is no checkpoint none.ckpt"),
        (["--ckpt", trained, "--num-steps", 3], "expected at least 8"),
        (["--ckpt", trained, "--num-chains", 1], "expected 2 or more"),
        (["--ckpt", trained, "--out", file / "below"], "--out"),
        ([], "--ckpt"),
    ):
        wrong = eblvm("diagnose", *arguments)
        assert wrong.status == 2 and words in wrong.err, arguments
        assert "Traceback" not in wrong.err


def test_a_model_without_a_chain_is_refused(eblvm, tiny_path, tmp_path):
    latent = "--model.init_args.latent.init_args"
    ckpt = fitted(
        tmp_path,
        tiny_path,
        f"{latent}.prior={{class_path: eblvm.priors.GaussianPrior, init_args: {{latent_dim: 4}}}}",
        f"{latent}.posterior={{class_path: eblvm.posteriors.AmortizedPosterior, init_args: "
        "{encoder: {class_path: eblvm.models.networks.MLP, "
        "init_args: {in_dim: 64, hidden_dims: [8], out_dim: 8}}}}",
        "--model.init_args.learning_rates={posterior: 1e-3, likelihood: 1e-3}",
    )
    wrong = eblvm("diagnose", "--ckpt", ckpt)
    assert wrong.status == 2 and "runs no chain" in wrong.err and "EnergyPrior" in wrong.err
    assert not (ckpt.parents[1] / "diagnose.json").exists()


def test_tempered_chains_from_the_command_line(eblvm, tiny_path, tmp_path):
    """As in the recipes toy/lebm_*: the prior's chain is tempered."""
    prior = "--model.init_args.latent.init_args.prior.init_args.sampler"
    kernel = "{class_path: eblvm.samplers.MALA, init_args: {num_steps: 2, step_size: 0.4}}"
    sampler = (
        "{class_path: eblvm.samplers.ParallelTempering, "
        f"init_args: {{kernel: {kernel}, temperatures: [1.0, 2.0], num_swaps: 5}}}}"
    )
    ckpt = fitted(tmp_path, tiny_path, f"{prior}={sampler}")
    done = eblvm("diagnose", "--ckpt", ckpt, "--num-chains", 4, "--num-steps", 60, "--out", "here")
    assert done.status == 0, done.err
    stored = json.loads(Path("here/diagnose.json").read_text())["chains"]["prior"]
    assert stored["steps_per_draw"] == 2 and stored["training_steps"] == 10
    assert stored["num_steps"] == 60 and stored["long"]["num_draws"] == 15
    assert 0 < stored["long"]["exchange_min"] <= 1 and 0 < stored["short"]["acceptance"] <= 1
    assert "exchange rate" in done.out and "acceptance" in done.out


def test_a_chain_that_starts_far_off_is_told_from_one_that_starts_there():
    sampler = MALA(8, 0.3)
    run = diagnosis.run_chains(ChainSetup(gaussian, sampler, far), 16, 6000, seeded(1))
    result = diagnosis.summary(run)
    assert result["short"]["rhat_max"] > 1.01
    assert result["energy_gap"] > 10 * result["energy_gap_error"] > 0
    assert result["long"]["energy_mean"] == pytest.approx(1.0, abs=0.1)  # D/2
    assert "has not converged" in result["reading"] and "above" in result["reading"]

    run = diagnosis.run_chains(ChainSetup(gaussian, HMC(8, 0.7, 2), exact), 16, 2000, seeded(1))
    result = diagnosis.summary(run)
    assert result["long"]["converged"]
    assert abs(result["energy_gap"]) < 3 * result["energy_gap_error"]
    assert "not converged" not in result["reading"]


def test_trapped_chains_are_called_unmixed():
    def wells(x):  # 12 apart: never crossed
        return gaussian(torch.cat([6 - x[:, :1].abs(), x[:, 1:]], 1))

    def either(num, generator):
        return 6.0 * torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).repeat(num // 2, 1)

    run = diagnosis.run_chains(ChainSetup(wells, MALA(10, 0.8), either), 6, 400, seeded())
    assert "even the long chain has not mixed" in diagnosis.summary(run)["reading"]


def test_chains_that_diverge_are_counted_and_the_others_measured(tmp_path):
    def start(num, generator):
        return torch.tensor([[0.1], [0.2], [0.3], [1e20]])

    def quartic(x):
        return x.pow(4).sum(-1)

    run = diagnosis.run_chains(ChainSetup(quartic, Langevin(4, 0.1), start), 4, 40, seeded())
    result = diagnosis.summary(run)
    assert result["long"]["num_diverged"] == 1 and math.isfinite(result["long"]["rhat_max"])
    assert "already in training's steps" in result["reading"]
    diagnosis.draw_run(run, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").exists()


def test_the_short_stretch_is_what_training_runs():
    setup = ChainSetup(gaussian, MALA(5, 0.5), far)
    run = diagnosis.run_chains(setup, 3, 20, seeded(4))
    x = setup.sampler(gaussian, far(3, None), seeded(4))
    assert torch.equal(run.short.x, x) and torch.equal(run.whole.trajectory[4], x)
    assert run.whole.trajectory.shape == (20, 3, 2)
    assert torch.equal(run.long.trajectory, run.whole.trajectory[10:])


def test_annealed_settings_go_on_at_their_last():
    annealed = Langevin(3, (0.3, 0.2, 0.1), (1.0, 1.0, 0.5), bounds=(-1.0, 1.0))
    onward = diagnosis.continued(annealed, 50)
    assert (onward.num_steps, onward.step_size, onward.noise_scale) == (50, 0.1, 0.5)
    assert onward.bounds == (-1.0, 1.0)
    ladder = ParallelTempering(MALA(2, 0.1), (1.0, 2.0), 3)
    assert diagnosis.continued(ladder, 7).num_swaps == 7
    assert diagnosis.continued(ladder, 7).kernel is ladder.kernel


def test_a_chain_of_no_steps_is_compared_by_its_start():
    run = diagnosis.run_chains(ChainSetup(gaussian, Langevin(0, 0.5), far), 8, 4000, seeded())
    result = diagnosis.summary(run)
    assert result["training_steps"] == 0 and result["short"]["num_draws"] == 0
    assert result["energy_gap"] == pytest.approx(36 - result["long"]["energy_mean"])
    assert "has not converged" in result["reading"]
    assert "no step" in diagnosis.table("prior", result).columns[1].header


def test_large_events_are_looked_at_in_part():
    assert diagnosis.coordinates(5).tolist() == [0, 1, 2, 3, 4]
    assert diagnosis.coordinates(1).tolist() == [0]
    chosen = diagnosis.coordinates(3072)
    assert len(chosen.unique()) == diagnosis.MOST_COORDINATES and chosen[-1] == 3071


def test_too_few_steps_are_named():
    with pytest.raises(UserError, match="takes 60 steps in training; expected at least 120"):
        diagnosis.run_chains(ChainSetup(gaussian, MALA(60, 0.5), far), 2, 100, seeded())


def test_one_datum_serves_many_chains_of_the_posterior(trained):
    """The energy of one row repeated is −log p(x, z) of that row."""
    model = load(trained, "cpu")
    latent, x, z = model.latent, torch.rand(1, 1, 8, 8), torch.randn(6, 4)
    energy = latent.posterior.chain(x, latent.prior, latent.likelihood).energy
    expected = latent.prior.energy(z) - latent.likelihood.log_prob(x.repeat(6, 1, 1, 1), z)
    torch.testing.assert_close(energy(z), expected)
