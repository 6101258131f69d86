"""The benchmark of image steps: both loops do the same, and every row is there."""

import argparse
import re
import time

import pytest
import torch

from eblvm.benchmarks.speed import images


def test_loops_agree_and_all_are_timed(capsys):
    images.main(
        "--recipe image/vae_ebm_digits --chains 4 --steps 20 --repeats 2 --threads 1 --cpu "
        "--bf16".split()
    )
    text = capsys.readouterr().out
    assert float(re.search(r"agree to (\S+) of", text).group(1)) < 1e-4
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == 5 and "textbook" in rows[0] and "bfloat16" in rows[-1]
    assert "1.00 (1.00–1.00)" in rows[0]
    for row in rows:  # the parts are shares of one step
        shares = [int(share) for share in re.findall(r"(\d+) %", row)]
        assert len(shares) == len(images.Loop.parts) and abs(sum(shares) - 100) <= 3


def test_losses_in_bfloat16_are_those_in_float32_up_to_rounding():
    # 8 bits of mantissa: each of three layers rounds to 2⁻⁸ of its size, sums do so no worse
    settings = {"recipe": "image/vae_ebm_digits", "chains": 32, "steps": 20, "device": "cpu"}
    losses = []
    for mixed in (False, True):
        model, x = images.prepared(argparse.Namespace(**settings), channels_last=True)
        size = float(model.energy(x).detach().abs().mean())  # the loss is a difference of energies
        loop = images.Loop(model, x, time.perf_counter, False, True, "never", mixed)
        loop.step(0)
        losses.append(loop.losses)
    exact, rounded = losses
    assert rounded["energy"].dtype == torch.bfloat16 and exact["energy"].dtype == torch.float32
    assert abs(rounded["energy"] - exact["energy"]) < 3 * 2**-8 * size
    assert abs(rounded["starter"] - exact["starter"]) < 3 * 2**-8 * exact["starter"].abs()
    assert rounded["starter"] != exact["starter"]  # it was not float32 in disguise


def test_devices_that_cannot_be(capsys):
    with pytest.raises(SystemExit):
        images.main(["--cpu", "--device", "cuda"])
    assert "says nothing of a GPU" in capsys.readouterr().err
    if not torch.cuda.is_available():
        with pytest.raises(SystemExit):
            images.main(["--device", "cuda"])
        assert "torch sees no CUDA device" in capsys.readouterr().err


@pytest.mark.gpu
def test_a_gpu_is_timed_with_noise_of_its_own(capsys):
    images.main(
        "--recipe image/vae_ebm_digits --chains 4 --steps 20 --repeats 2 --device cuda "
        "--bf16".split()
    )
    text = capsys.readouterr().out
    assert float(re.search(r"agree to (\S+) of", text).group(1)) < 1e-4
    assert torch.cuda.get_device_name() in text
