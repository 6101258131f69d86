"""`--device` and `--dtype` rerun every test elsewhere; the default is float64 on the CPU."""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two busy threads spin on small tensors

import pytest
import torch
from bench_parts import SUITE, TINY


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="run the tests on this device, e.g. cuda")
    parser.addoption("--dtype", default="float64", help="default dtype of the device fixture")


def pytest_collection_modifyitems(config, items):
    chosen = config.getoption("-m")
    for item in items:
        if "slow" in item.keywords and "slow" not in chosen:
            item.add_marker(pytest.mark.skip(reason="slow: run with `-m slow`"))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _seeded(request):
    """A fixed seed and one thread; the default dtype is left as torch has it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def like(request):
    """Keyword arguments `device=…, dtype=…` for tensors of a mathematical test."""
    return {
        "device": torch.device(request.config.getoption("--device")),
        "dtype": getattr(torch, request.config.getoption("--dtype")),
    }


class Outcome(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def eblvm(tmp_path, monkeypatch, capsys):
    """The command line, in this process and in an empty folder: `eblvm("fit", "--config", …)`.

    What a user caused never shows a traceback: anything but SystemExit is raised and fails a test.
    """
    from eblvm.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["eblvm"])
    monkeypatch.delenv("EBLVM_DATA", raising=False)
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # restored afterwards; commands set their own

    def run(*arguments):
        status = 0
        # filters and default types that a command sets go with it
        with warnings.catch_warnings():
            try:
                main([str(argument) for argument in arguments])
            except SystemExit as stop:
                status = stop.code or 0
        return Outcome(status, *capsys.readouterr())

    return run


@pytest.fixture
def tiny():
    """A recipe as small as can be, for tests of everything around the mathematics."""
    return Path(__file__).with_name("tiny.yaml")


@pytest.fixture(scope="session")
def tiny_path():
    """`tiny`, for fixtures that live longer."""
    return Path(__file__).with_name("tiny.yaml")


@pytest.fixture
def suite_file(tmp_path):
    """The file of the smallest suite."""
    path = tmp_path / "mine.yaml"
    path.write_text(SUITE.replace("TINY", str(TINY)))
    return path
