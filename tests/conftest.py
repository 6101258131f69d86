"""`--device` and `--dtype` rerun every test elsewhere; the default is float64 on the CPU."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two busy threads spin on small tensors

import pytest
import torch


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
