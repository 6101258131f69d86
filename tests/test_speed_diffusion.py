"""The benchmark of diffusion steps: both do the same, and every row is there."""

import re

import pytest
import torch

from eblvm.benchmarks.speed import diffusion


@pytest.mark.parametrize("flags, num_rows", [("", 5), ("--float32", 4)])
def test_steps_agree_and_all_are_timed(flags, num_rows, capsys):
    diffusion.main(f"--width 8 --batch 2 --rounds 1 {flags}".split())
    text = capsys.readouterr().out
    assert float(re.search(r"agree to (\S+) of", text).group(1)) < 1e-4
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert len(rows) == num_rows and "1.00 (1.00–1.00)" in rows[0]
    assert all(float(row.split("|")[2]) > 0 for row in rows)


def test_operations_are_those_of_products_and_their_derivatives():
    a = torch.randn(3, 5, requires_grad=True)
    b = torch.randn(5, 7)
    with diffusion.Operations() as counter:
        (gradient,) = torch.autograd.grad((a @ b).square().sum(), a, create_graph=True)
        gradient.sum().backward()
    product = 2 * 3 * 5 * 7
    assert (
        counter.total == 4 * product
    )  # forward, its gradient, and that once more for either factor
