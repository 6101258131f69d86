"""A resumed run ends where the uninterrupted one does: bit for bit, on the CPU.

The recipe has dropout in the decoder (the global generator), chains in prior and posterior (their
own generators), dequantization and a shuffle (the loader's), a schedule, and Adam's moments.
"""

import json
from pathlib import Path

import pytest
import torch

from eblvm.callbacks import RandomState

EPOCH = 6  # batches


def final(folder):
    return torch.load(Path(folder) / "checkpoints" / "last.ckpt")


def differences(one, other, path=""):
    """The places in which two nested containers differ, down to the last bit."""
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and torch.equal(one, other)
        return [] if same else [path]
    if isinstance(one, dict):
        if one.keys() != other.keys():
            return [path]
        return [d for k in one for d in differences(one[k], other[k], f"{path}.{k}")]
    if isinstance(one, (list, tuple)):
        if len(one) != len(other):
            return [path]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in differences(a, b, f"{path}.{i}")]
    return [] if one == other else [path]


STATE = ("state_dict", "optimizer_states", "lr_schedulers", "random_state", "global_step", "epoch")

COMMON = ["--trainer.max_epochs=3", "--trainer.log_every_n_steps=1"]
FLAGS = ["--trainer.accumulate_grad_batches=2", "--trainer.gradient_clip_val=0.5", "--ema=0.9"]
FLAGS += ["--trainer.precision=bf16-mixed"]


@pytest.fixture(scope="module")
def whole(tiny_path, tmp_path_factory):
    """The uninterrupted run's folder."""
    from eblvm.cli import main

    folder = tmp_path_factory.mktemp("whole")
    main(["fit", "--config", str(tiny_path), f"--runs={folder}", *COMMON])
    return folder / "tiny" / "version_0"


def resume(eblvm, tiny, steps, *flags):
    """The folder of a run that was cut after so many steps and went on."""
    assert eblvm("fit", "--config", tiny, *COMMON, *flags, f"--trainer.max_steps={steps}")[0] == 0
    run = Path("runs/tiny").joinpath(sorted(p.name for p in Path("runs/tiny").iterdir())[-1])
    assert final(run)["global_step"] == steps
    done = eblvm("fit", "--ckpt_path", run / "checkpoints/last.ckpt", "--trainer.max_steps=-1")
    assert done.status == 0, done.err
    return run


@pytest.mark.parametrize("steps", [3, EPOCH, EPOCH + 2], ids="after {} steps".format)
def test_resumed_equals_uninterrupted(steps, eblvm, tiny, whole):
    run = resume(eblvm, tiny, steps)
    for key in STATE:
        assert not differences(final(whole)[key], final(run)[key], key)
    # and the log goes on without gap or repetition
    one, other = ((folder / "metrics.csv").read_text().splitlines() for folder in (whole, run))
    assert sorted(one) == sorted(other)


def test_costs_of_both_parts(eblvm, tiny):
    """Seconds add up, and the most memory is that of the greedier part."""
    assert eblvm("fit", "--config", tiny, *COMMON, f"--trainer.max_steps={EPOCH}").status == 0
    run = Path("runs/tiny/version_0")
    before = json.loads((run / "cost.json").read_text())
    assert 0 < before["peak_memory_mib"] < 100_000
    last = run / "checkpoints/last.ckpt"
    kept = torch.load(last)
    state = kept["callbacks"]["Cost"]
    assert state["peaks"]["peak_memory_mib"] <= before["peak_memory_mib"]
    state["peaks"]["peak_memory_mib"] = 123_456_789
    torch.save(kept, last)
    assert eblvm("fit", "--ckpt_path", last, "--trainer.max_steps=-1").status == 0
    after = json.loads((run / "cost.json").read_text())
    assert after["peak_memory_mib"] == 123_456_789
    assert after["train_wall_s"] > before["train_wall_s"]
    assert after["steps"] == 3 * EPOCH


def test_with_averages_accumulation_clipping_and_mixed_precision(eblvm, tiny):
    assert eblvm("fit", "--config", tiny, *COMMON, *FLAGS).status == 0
    one = final("runs/tiny/version_0")
    other = final(resume(eblvm, tiny, EPOCH // 2 + 1, *FLAGS))
    for key in (*STATE, "current_model_state"):
        assert not differences(one[key], other[key], key)
    assert differences(one["state_dict"], one["current_model_state"])  # averages and weights


def test_without_the_generators_states_a_resumed_run_differs(eblvm, tiny, whole, monkeypatch):
    """So the tests above would notice: dropout alone sees to that."""
    monkeypatch.setattr(RandomState, "restore", staticmethod(lambda state: None))
    run = resume(eblvm, tiny, 3)
    assert differences(final(whole)["state_dict"], final(run)["state_dict"])


def test_a_place_in_an_epoch_that_means_nothing_is_refused(eblvm, tiny):
    eblvm("fit", "--config", tiny, "--trainer.max_steps=2")
    ckpt = "runs/tiny/version_0/checkpoints/last.ckpt"
    before = Path(ckpt).read_bytes()
    wrong = eblvm("fit", "--ckpt_path", ckpt, "--data.batch_size=4", "--trainer.max_steps=9")
    assert wrong.status == 2
    assert "batch_size was 8 and is 4" in wrong.err
    assert Path(ckpt).read_bytes() == before
