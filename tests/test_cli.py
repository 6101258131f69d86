"""What the command line promises: quick answers, one clear message, no half-written run."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from eblvm.cli import recipe_names

HEAVY = ("torch", "torchvision", "pytorch_lightning", "jsonargparse", "matplotlib", "wandb")
TAIL = f"sys.exit(any(module in sys.modules for module in {HEAVY}))"


def child(*arguments, **settings):
    """The installed command's entry point in a fresh process, and the CPU seconds it took."""
    code = (
        "import sys\nfrom eblvm.cli import main\ntry:\n    main(sys.argv[1:])\n"
        f"except SystemExit as stop:\n    assert not stop.code, stop.code\n{TAIL}"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, **settings)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return done, seconds


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], [], ["recipes"], ["recipes", "show", "image/lebm_digits"]],
    ids=" ".join,
)
def test_light_commands_import_nothing_heavy_and_take_little(arguments):
    done, seconds = child(*arguments)
    assert done.returncode == 0, f"imports something of {HEAVY}: {done.stderr}"
    assert done.stdout
    assert seconds < 1.5


def test_recipes_are_listed_with_method_data_and_paper(eblvm):
    listed = eblvm("recipes").out
    assert recipe_names()
    for name in recipe_names():
        (line,) = [line for line in listed.splitlines() if line.split()[:1] == [name]]
        assert len(line.split()) > 4
    shown = eblvm("recipes", "show", "image/lebm_digits").out
    assert shown.startswith("# Method:") and "eblvm.priors.EnergyPrior" in shown


def test_unknown_command_and_recipe_name_the_near_ones(eblvm):
    wrong = eblvm("tarin")
    assert wrong.status == 2 and "fit" in wrong.err
    for command in (["fit", "--config", "image/lebm_digit"], ["recipes", "show", "lebm_digits"]):
        wrong = eblvm(*command)
        assert wrong.status == 2
        assert "image/lebm_digits" in wrong.err
    assert eblvm("recipes", "show", "zzz").err.rstrip().endswith("`eblvm recipes` lists them.")


CLI_ERRORS = {
    "no recipe": ([], "--config NAME"),
    "recipe without its flag": (["image/vae_digits"], "--config image/vae_digits"),
    "trainer option": (["--trainer.acelerator=cpu"], "Did you mean trainer.accelerator"),
    "data option": (["--data.batch_siz=4"], "Did you mean batch_size?"),
    "nested option": (["--model.latent.prior.tilt.hidden_dim=[3]"], "Did you mean hidden_dims"),
    "class": (["--model.latent.prior=GausianPrior"], "Did you mean GaussianPrior"),
    "abstract class": (
        ["--model.latent.prior.tilt=eblvm.energies.TimeEnergy"],
        "Expected an instantiatable class, but eblvm.energies.TimeEnergy is abstract",
    ),
    "unknown class": (["--model=VAE"], "--model: there is no class 'VAE'"),
    "type": (["--trainer.max_epochs=x"], "--trainer.max_epochs: expected int, got 'x'"),
    "nested type": (["--data.image_size=big"], "--data.image_size: expected int, got 'big'"),
    "missing rate": (["--model.learning_rates={prior: 1e-3}"], "no entry for ['likelihood']"),
    "decoder's sizes": (["--model.latent.likelihood.decoder.out_dim=63"], "out_dim is 63"),
    "data's size": (["--data.image_size=16"], "image_size"),
    "tilt's size": (["--model.latent.prior.tilt.in_dim=5"], "do not fit"),
    "batch too large": (["--data.batch_size=4000"], "lower batch_size"),
    "no such device": (["--trainer.accelerator=tpu"], "torch_xla"),
    "checkpoint": (["--ckpt_path=none.ckpt"], "no checkpoint none.ckpt"),
    "monitor": (["--monitor=val/nothing"], "val/nothing"),
    "no space for runs": (["--runs=/proc/here"], "--runs"),
}


@pytest.mark.parametrize("case", CLI_ERRORS)
def test_error_is_one_message_status_2_and_no_run(case, eblvm, tiny):
    arguments, words = CLI_ERRORS[case]
    config = [] if case == "no recipe" else ["--config", tiny]
    wrong = eblvm("fit", *config, *arguments)
    assert wrong.status == 2
    assert wrong.err.startswith("eblvm: error: ")
    assert words in wrong.err
    assert "Traceback" not in wrong.err
    assert len(wrong.err) < 900
    assert not [p for p in Path("runs").rglob("*") if p.is_file()]


def test_a_file_in_the_place_of_the_runs_folder(eblvm, tiny):
    Path("runs").write_text("not a folder")
    wrong = eblvm("fit", "--config", tiny)
    assert wrong.status == 2 and "cannot write to" in wrong.err and "--runs" in wrong.err
    assert Path("runs").read_text() == "not a folder"


def test_missing_and_truncated_data(eblvm, tiny):
    data = ["--data.dataset=MNIST", "--data.root=data", "--data.image_size=8"]
    raw = Path("data/MNIST/raw")
    raw.mkdir(parents=True)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (raw / name).write_bytes(b"\0\0\x08\x03\0\0\0\x09")
    wrong = eblvm("fit", "--config", tiny, *data)
    assert wrong.status == 2 and "train-images-idx3-ubyte" in wrong.err
    folder = ["--data.dataset=ImageFolder", "--data.root=nowhere"]
    wrong = eblvm("fit", "--config", tiny, *folder)
    assert wrong.status == 2 and "nowhere" in wrong.err
    assert not Path("runs").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_path):
    """The checkpoint of a finished run."""
    from eblvm.cli import main

    folder = tmp_path_factory.mktemp("trained")
    main(["fit", "--config", str(tiny_path), "--runs", str(folder / "runs")])
    (ckpt,) = folder.glob("runs/tiny/version_0/checkpoints/last.ckpt")
    return ckpt


def bad_checkpoints(ckpt, folder):
    """Name to file."""
    whole = ckpt.read_bytes()
    files = {"empty": b"", "text": b"hello, world", "truncated": whole[: len(whole) // 2]}
    for name, content in files.items():
        folder.joinpath(f"{name}.ckpt").write_bytes(content)
    torch.save({"weights": torch.ones(3)}, folder / "foreign.ckpt")
    torch.save({"state_dict": {"layer": torch.ones(3)}}, folder / "other_model.ckpt")
    torch.save({"state_dict": Path("code")}, folder / "code.ckpt")
    with zipfile.ZipFile(folder / "zip.ckpt", "w") as archive:
        archive.writestr("a", "b")
    return sorted(folder.glob("*.ckpt"))


def test_bad_checkpoints_are_refused(eblvm, tiny, trained, tmp_path):
    folder = tmp_path / "bad"
    folder.mkdir()
    files = bad_checkpoints(trained, folder)
    assert len(files) == 7
    for file in files:
        wrong = eblvm("sample", "--ckpt", file)
        assert wrong.status == 2 and str(file) in wrong.err, file.name
        assert "Traceback" not in wrong.err and not Path("samples.png").exists()
    other = folder / "other_model.ckpt"
    for command, file in (("fit", files[-1]), ("test", files[0]), ("fit", other)):
        wrong = eblvm(command, "--config", tiny, "--ckpt_path", file)
        assert wrong.status == 2 and str(file) in wrong.err
    assert not list(Path("runs").rglob("version_*"))


def test_a_run_leaves_one_folder_and_says_what_is_next(eblvm, tiny):
    done = eblvm("fit", "--config", tiny, "--trainer.enable_progress_bar=true")
    assert done.status == 0
    run = Path("runs/tiny/version_0")
    assert os.listdir() == ["runs"] and os.listdir("runs/tiny") == ["version_0"]
    for name in ("config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (run / name).is_file(), name
    assert list(run.glob("events.out.tfevents.*")) and list(run.glob("pictures/samples_*.png"))
    assert f"best:     {run}/checkpoints/best.ckpt (val/loss " in done.out
    assert f"eblvm test --ckpt_path {run}/checkpoints/best.ckpt" in done.out
    assert done.out.count("epoch 1: val/") == 1 and "v_num" not in done.out
    assert "Warning" not in done.err and "Warning" not in done.out
    config = (run / "config.yaml").read_text()

    lines = [line for line in done.out.splitlines() if "eblvm " in line]
    commands = [line.split("eblvm ")[1].split() for line in lines]
    assert [command[0] for command in commands] == ["test", "sample"]
    for command in commands:
        assert eblvm(*command).status == 0
    assert Path("samples.png").stat().st_size > 500
    assert json.loads((run / "test.json").read_text())["test/loss"] > 0
    assert eblvm("predict", "--ckpt_path", run / "checkpoints/last.ckpt").status == 0
    assert torch.load(run / "predictions.pt").shape == (6, 4)  # a tenth of 60 images, 4 latents
    assert (run / "config.yaml").read_text() == config
    assert os.listdir("runs/tiny") == ["version_0"]


def test_sample_writes_what_the_suffix_says(eblvm, trained):
    assert eblvm("sample", "--ckpt", trained, "--num", 5, "--out", "x.pt").status == 0
    x = torch.load("x.pt")
    assert x.shape == (5, 1, 8, 8)
    eblvm("sample", "--ckpt", trained, "--num", 5, "--out", "y.pt")
    eblvm("sample", "--ckpt", trained, "--num", 5, "--out", "z.pt", "--seed", 1)
    assert torch.equal(torch.load("y.pt"), x) and not torch.equal(torch.load("z.pt"), x)
    for out, words in (("x.txt", ".pt"), ("no/x.png", "--out"), ("x.nothing", "cannot be written")):
        wrong = eblvm("sample", "--ckpt", trained, "--out", out)
        assert wrong.status == 2 and words in wrong.err


def test_processes_draw_a_share_each_into_one_file(eblvm, trained):
    done = eblvm("sample", "--ckpt", trained, "--num", 5, "--devices", 2, "--out", "x.pt")
    assert done.status == 0, done.err
    assert "by 2 processes in" in done.out
    x = torch.load("x.pt")
    assert x.shape == (5, 1, 8, 8) and len(x.flatten(1).unique(dim=0)) == 5  # seeds differ
    eblvm("sample", "--ckpt", trained, "--num", 5, "--devices", 2, "--out", "y.pt")
    assert torch.equal(torch.load("y.pt"), x)
    assert not [name for name in os.listdir(".") if name.startswith("tmp")]  # no parts are left
    for options, words in (
        (["--num", 1], "a sample or more"),
        (["--steps", 2], "plain samples only"),
        (["--symbol", 1], "failed: "),
    ):
        wrong = eblvm("sample", "--ckpt", trained, "--devices", 2, *options)
        assert wrong.status == 2 and words in wrong.err


FLAGS = {
    "ema": ["--ema=0.99"],
    "bf16": ["--trainer.precision=bf16-mixed"],
    "accumulation and clipping": [
        "--trainer.accumulate_grad_batches=2",
        "--trainer.gradient_clip_val=0.1",
    ],
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_change_the_weights_and_nothing_else(name, eblvm, tiny, trained):
    done = eblvm("fit", "--config", tiny, *FLAGS[name])
    assert done.status == 0 and "Warning" not in done.err
    weights = torch.load("runs/tiny/version_0/checkpoints/last.ckpt")["state_dict"]
    plain = torch.load(trained)["state_dict"]
    assert weights.keys() == plain.keys()
    assert any(not torch.equal(weights[k], plain[k]) for k in plain)
    assert all(w.dtype == torch.float32 for w in weights.values())


@pytest.mark.parametrize("value", ["null", "None", "-5.0"])
def test_a_class_within_a_class_may_be_told_of_nothing(value, eblvm):
    """jsonargparse hands null on as the word None: "expected float"."""
    option = f"--model.init_args.cycle.init_args.floor={value}"
    done = eblvm("fit", "--config", "toy/bidvl_calibrated_8gaussians", option, "--print_config")
    assert done.status == 0, done.err
    model = yaml.safe_load(done.out)["model"]["init_args"]
    assert model["cycle"]["init_args"]["floor"] == (None if value in ("null", "None") else -5.0)
    wrong = eblvm("fit", "--config", "image/bidvl_digits", "--data.init_args.batch_size=None")
    assert wrong.status == 2 and "batch_size" in wrong.err  # where nothing means nothing


def test_compiled_networks_learn_the_same(eblvm, tiny, trained, monkeypatch):
    """Without a C++ compiler's minutes: this backend traces, and then runs eagerly."""
    from eblvm.callbacks import CompileNetworks

    compiled = []
    monkeypatch.setattr("eblvm.training.CompileNetworks", lambda: CompileNetworks("eager"))
    original = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self, **k: (compiled.append(self), original(self, **k))
    )
    quiet = ["--model.latent.likelihood.decoder.activation=torch.nn.GELU"]
    assert eblvm("fit", "--config", tiny, *quiet).status == 0
    assert eblvm("fit", "--config", tiny, *quiet, "--compile=true").status == 0
    assert len(compiled) == 2  # the decoder and the tilt's net
    eager, traced = (
        torch.load(f"runs/tiny/version_{i}/checkpoints/last.ckpt")["state_dict"] for i in (0, 1)
    )
    assert eager.keys() == traced.keys()
    for name in eager:  # the order of float32 sums may differ
        torch.testing.assert_close(eager[name], traced[name], rtol=1e-3, atol=1e-4)


def test_wandb_offline_stays_in_the_run_folder(eblvm, tiny, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.filters", [])  # wandb's own imports warn
        assert eblvm("fit", "--config", tiny, "--wandb=true", "--trainer.max_epochs=1").status == 0
    assert list(Path("runs/tiny/version_0/wandb").glob("offline-run-*/run-*.wandb"))
    assert os.listdir() == ["runs"]


def test_loss_that_is_not_finite_in_the_first_epoch_leaves_nothing(eblvm, tiny):
    wrong = eblvm("fit", "--config", tiny, "--model.learning_rates.prior=1e30")
    assert wrong.status == 2
    assert "loss term 'reconstruction' is nan at step 1 (epoch 0)" in wrong.err
    assert "learning rate" in wrong.err and "kept" not in wrong.err
    assert not list(Path("runs").rglob("version_*"))


def test_loss_that_is_not_finite_later_keeps_the_last_good_checkpoint(eblvm, tiny):
    assert eblvm("fit", "--config", tiny).status == 0
    last = Path("runs/tiny/version_0/checkpoints/last.ckpt")
    good = last.read_bytes()
    more = ["--trainer.max_epochs=4", "--model.latent.prior.sampler.step_size=1e18"]
    wrong = eblvm("fit", "--ckpt_path", last, *more)
    assert wrong.status == 2
    assert "at step 12 (epoch 2)" in wrong.err
    assert f"The last good checkpoint is {last}." in wrong.err
    assert last.read_bytes() == good
    assert eblvm("sample", "--ckpt", last).status == 0


def test_weights_that_are_not_finite_do_not_replace_a_checkpoint(eblvm, tiny):
    """One batch an epoch: the loss is looked at before the step that ruins the weights."""
    one = ["--data.num_synthetic=16", "--trainer.check_val_every_n_epoch=9"]
    rate = ["--model.learning_rates.likelihood=1e38"]
    wrong = eblvm("fit", "--config", tiny, *one, "--model.optimizer=torch.optim.SGD", *rate)
    assert wrong.status == 2 and "parameter 'latent.likelihood" in wrong.err
    assert not list(Path("runs").rglob("*.ckpt"))


def test_interrupt_keeps_the_state_and_the_command_it_prints_resumes(eblvm, tiny, tmp_path):
    """Ctrl-C, in a process of its own as a terminal would do it."""
    script = Path(sys.executable).with_name("eblvm")
    many = ["--trainer.max_epochs=100000", "--trainer.check_val_every_n_epoch=1000"]
    command = [str(script), "fit", "--config", str(tiny), *many]
    process = subprocess.Popen(command, cwd=tmp_path, text=True, stdout=-1, stderr=-1)
    run = Path("runs/tiny/version_0")
    deadline = time.monotonic() + 90
    while not (run / "checkpoints/last.ckpt").exists():
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "Traceback" not in err
    assert re.search(r"interrupted at step (\d+); the state of step \1 is kept. Resume", err)
    resume = err.split("eblvm fit ")[1].split()
    assert resume == ["--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"]

    step = torch.load(resume[1])["global_step"]
    assert step > 0
    done = eblvm("fit", *resume, f"--trainer.max_steps={step + 7}")
    assert done.status == 0, done.err
    assert os.listdir("runs/tiny") == ["version_0"]  # the run goes on in its folder
    assert torch.load(resume[1])["global_step"] == step + 7


def test_runs_that_start_together_get_a_folder_each(tmp_path):
    from eblvm.runs import claim_run_dir, next_run_dir

    assert next_run_dir(str(tmp_path), "a/b").name == "version_0"
    folders = [claim_run_dir(str(tmp_path), "a/b") for _ in range(3)]
    assert [f.name for f in folders] == ["version_0", "version_1", "version_2"]
    assert all(f.is_dir() for f in folders)


def test_a_run_shorter_than_its_validation_interval_still_ends_with_a_look(eblvm, tiny):
    done = eblvm("fit", "--config", tiny, "--trainer.check_val_every_n_epoch=50")
    assert done.status == 0, done.err
    assert list(Path("runs").rglob("best.ckpt"))


def test_chains_of_a_run_are_never_compiled_behind_its_back(eblvm, tiny, monkeypatch):
    # when that happens depends on processor time, and a resumed run would differ in rounding
    from eblvm.samplers import compilation_report, compiled

    monkeypatch.setattr(compiled, "COMPILE_AFTER", 0.0)
    before = len(compilation_report())
    chains = ["--model.latent.prior.sampler.num_steps=40"]
    assert eblvm("fit", "--config", tiny, *chains).status == 0
    assert len(compilation_report()) == before


def test_sampling_from_what_cannot_sample_says_so(eblvm):
    fit = ("fit", "--config", "image/classifier_digits", "--trainer.max_epochs=1")
    assert eblvm(*fit, "--trainer.limit_train_batches=1").status == 0
    (ckpt,) = Path("runs").rglob("last.ckpt")
    wrong = eblvm("sample", "--ckpt_path", ckpt)
    assert wrong.status == 2 and "ImageClassifier, which draws no samples" in wrong.err


def test_untrained_weights_are_announced(eblvm, tiny):
    done = eblvm("test", "--config", tiny)
    assert done.status == 0 and "untrained" in done.err


def test_how_figures_were_made_stands_beside_them(eblvm):
    fit = ("fit", "--config", "image/vae_digits", "--trainer.max_epochs=1")
    assert eblvm(*fit, "--trainer.limit_train_batches=1").status == 0
    (ckpt,) = Path("runs").rglob("best.ckpt")
    assert eblvm("test", "--ckpt", ckpt).status == 0
    (path,) = Path("runs").rglob("test.json")
    protocol = json.loads(path.read_text())["protocol"]["SampleQuality"]
    assert protocol["num_fake"] == 2000 and len(protocol["weights_sha256"]) == 64
    assert protocol["precision_recall"]["k"] == 3
    assert (protocol["split"], protocol["seed"]) == ("test", 0)
    assert eblvm("validate", "--ckpt", ckpt, "--seed_everything=5").status == 0
    (path,) = Path("runs").rglob("validate.json")
    protocol = json.loads(path.read_text())["protocol"]["SampleQuality"]
    assert (protocol["split"], protocol["seed"]) == ("val", 5)


def test_a_run_starts_from_the_weights_of_another(eblvm, tiny, trained):
    options = ("--weights", trained, "--model.init_args.learning_rates.prior=1e-12")
    options += ("--model.init_args.learning_rates.likelihood=1e-12", "--trainer.max_epochs=1")
    done = eblvm("fit", "--config", tiny, *options)
    assert done.status == 0, done.err
    found = torch.load("runs/tiny/version_0/checkpoints/last.ckpt")
    assert found["epoch"] == 0  # all but the weights begins anew
    for name, value in torch.load(trained)["state_dict"].items():
        torch.testing.assert_close(found["state_dict"][name], value, rtol=1e-4, atol=1e-6)
    wrong = eblvm("fit", "--config", tiny, "--weights", "nothing.ckpt")
    assert wrong.status == 2 and "there is no checkpoint nothing.ckpt" in wrong.err
