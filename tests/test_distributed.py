"""Two processes on the CPU (gloo) do what one does, share the work, and draw different noise."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import ranks
import torch

from eblvm.data import seeded_generator

WORLD = 2
LIMIT = 150
"""Seconds after which processes that wait for each other are given up."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """What each of two ranks recorded; started under the names that torchrun gives."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    names = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    names |= {"WORLD_SIZE": str(WORLD), "LOCAL_WORLD_SIZE": str(WORLD), "GROUP_RANK": "0"}
    processes = []
    for rank in map(str, range(WORLD)):
        environment = {**os.environ, **names, "RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, ranks.__file__, str(folder)]
        processes.append(subprocess.Popen(command, env=environment, stderr=-1, text=True))
    try:
        errors = [process.communicate(timeout=LIMIT)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert not any(process.returncode for process in processes), errors
    return [torch.load(folder / f"rank_{rank}.pt") for rank in range(WORLD)]


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("name", ["lebm", "ldebm"])
def test_averaged_gradient_is_that_of_one_process_on_the_joined_batch(name, recorded, float64):
    """Over two steps, so that the weights between them count, too.

    The joined batch is put together from the ranks' batches; each half has the noise of the
    (seed, rank, stage, epoch, batch) that it had on its rank. What differs is who averages: DDP's
    buckets there, one `.mean()` over all rows here. Float64 rounding is all that may remain.
    """
    one, other = (record["train" if name == "lebm" else f"train {name}"] for record in recorded)
    assert len(one) == len(other) == 2
    model = ranks.MODELS[name]()
    optimizer = model.configure_optimizers()["optimizer"]
    for i, steps in enumerate(zip(one, other, strict=True)):
        vectors = [b for n, b in model.named_buffers() if n.endswith(("_u", "_v"))]
        before, halves = [v.clone() for v in vectors], []
        for rank, step in enumerate(steps):
            for vector, value in zip(vectors, before, strict=True):
                vector.copy_(value)  # each rank takes one power iteration per step
            generator = seeded_generator(ranks.SEED, rank, 0, 0, i, 0)
            halves.append(model.terms((step["x"], None), generator))
        terms = {name: torch.cat([half[name] for half in halves]) for name in halves[0]}
        assert len(terms["prior"]) == 8
        optimizer.zero_grad()
        (terms["reconstruction"] + terms["prior"]).mean().backward()
        for n, parameter in model.named_parameters():
            if parameter.ndim > 1:  # an energy's constant has no gradient
                assert parameter.grad.abs().max() > 1e-6
            for step in steps:
                torch.testing.assert_close(
                    step["gradient"][n], parameter.grad, rtol=1e-11, atol=1e-13
                )
        optimizer.step()


@pytest.mark.parametrize("name", ranks.OTHERS)
def test_every_learner_moves_alike_on_all_ranks(name, recorded):
    """Parameters stay equal, as gradients are averaged; chains that go on are each rank's own."""
    one, other = (record["end"][name] for record in recorded)
    for n, value in one["after"].items():
        torch.testing.assert_close(value, other["after"][n], rtol=0, atol=0)
        if value.ndim > 1:  # an energy's constant has no gradient
            assert not torch.equal(value, one["before"][n]), f"{n} did not move"
    chains = [n for n in one["buffers"] if n.endswith(("buffer.states", "persistent"))]
    assert bool(chains) == (name in ("persistent_lebm", "persistent_ebm", "boltzmann"))
    for n in chains:
        start = one["before"][n]
        moved = [
            {tuple(row) for row in rank["buffers"][n].tolist()}
            - {tuple(row) for row in start.tolist()}
            for rank in (one, other)
        ]
        assert all(moved)
        assert not moved[0] & moved[1], "one rank's chains on both"


def test_ranks_share_the_data_and_draw_different_noise(recorded):
    one, other = (record["train"] for record in recorded)
    seen = torch.cat([step["x"] for steps in (one, other) for step in steps])
    assert len(seen.unique(dim=0)) == 16  # each of the 16 points once
    for name in ("negative", "posterior"):
        drawn = torch.cat([step[name] for steps in (one, other) for step in steps])
        distances = torch.cdist(drawn, drawn) + 1e9 * torch.eye(len(drawn))
        assert distances.min() > 1e-6, f"two {name} chains are one"


def test_protocols_count_the_data_of_all_ranks(recorded):
    for rank, record in enumerate(recorded):
        found = record["count"]
        assert float(found["bleu"]) == 100
        assert found["protocol"]["num_sentences"] == 3
        assert found["own"] == 1 + rank, "its own again"


def test_figures_are_those_of_one_process(recorded, float64):
    single = ranks.evaluate(devices=1)
    names = {"reconstruction_error", "log_likelihood", "frechet", "precision", "coverage"}
    assert {f"val/{name}" for name in names} <= single["figures"].keys()
    exact = single["truth"].log_prob(single["x"].flatten(1)).mean()
    found = single["figures"]["val/log_likelihood"]
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)
    noisy = ("val/loss", "val/reconstruction", "val/prior")  # one posterior draw per row
    for record in recorded:
        figures = record["evaluate"]["figures"]
        assert figures.keys() == single["figures"].keys()
        for name, value in figures.items():
            if name not in noisy:  # logged in float32
                torch.testing.assert_close(value, single["figures"][name], rtol=1e-6, atol=1e-7)
    for name in noisy:
        assert recorded[0]["evaluate"]["figures"][name] == recorded[1]["evaluate"]["figures"][name]


def test_samples_for_evaluation_are_shared_out(recorded):
    assert [record["evaluate"]["asked"] for record in recorded] == [[20], [20]]


TWO = ["--trainer.devices=2", "--trainer.strategy=ddp"]
LAST = "runs/tiny/version_0/checkpoints/last.ckpt"
SCRIPT = str(Path(sys.executable).with_name("eblvm"))


def command(*arguments):
    """The installed command in new processes, which say once where the run is."""
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=LIMIT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("run:  ") == 1
    assert os.listdir() == ["runs"] and os.listdir("runs/tiny") == ["version_0"]


def test_a_run_of_two_processes_is_resumed_by_one(eblvm, tiny):
    """Launched by Lightning, from one command."""
    command(SCRIPT, "fit", "--config", str(tiny), *TWO, "--trainer.max_epochs=1")
    checkpoint = torch.load(LAST)
    assert checkpoint["global_step"] == 3  # 48 images in batches of 8 on two devices
    assert len(checkpoint["random_state"]) == 2
    metrics = Path("runs/tiny/version_0/metrics.csv").read_text()
    assert len(metrics.splitlines()) < 5  # the first rank's only

    one = ["--trainer.devices=1", "--trainer.strategy=auto", "--trainer.max_epochs=2"]
    done = eblvm("fit", "--ckpt_path", LAST, *one)
    assert done.status == 0, done.err
    assert torch.load(LAST)["global_step"] == 3 + 6


@pytest.mark.slow
def test_a_run_of_one_process_is_resumed_by_two_of_torchrun(eblvm, tiny):
    done = eblvm("fit", "--config", tiny, "--trainer.max_epochs=1")
    assert done.status == 0, done.err
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    command(*launcher, SCRIPT, "fit", "--ckpt_path", LAST, *TWO, "--trainer.max_epochs=2")
    assert torch.load(LAST)["global_step"] == 6 + 3
