"""The projection onto a vocabulary: time and memory of a training step's loss.

Three ways to the same loss and gradients, at the sizes of Penn Treebank sentences: all positions
with their padding and plain cross-entropy; padding left out, plain; padding left out, in chunks.

Run: OMP_NUM_THREADS=1 python -m eblvm.benchmarks.speed.projection
"""

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from eblvm.objectives import linear_cross_entropy

NUM, LENGTH, WIDTH, VOCAB = 128, 39, 512, 10_001
"""Sentences, target positions, states, words: Penn Treebank as in the code of LDEBM."""


def padded(hidden: Tensor, weight: Tensor, target: Tensor, full: Tensor) -> Tensor:
    """All positions at once, padding not counted."""
    logits = F.linear(hidden, weight)
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0, reduction="sum")


def skipping(hidden: Tensor, weight: Tensor, target: Tensor, full: Tensor) -> Tensor:
    """Padding left out."""
    return F.cross_entropy(F.linear(hidden[full], weight), target[full], reduction="sum")


def chunked(hidden: Tensor, weight: Tensor, target: Tensor, full: Tensor) -> Tensor:
    """Padding left out, logits never all in memory."""
    return linear_cross_entropy(hidden[full], weight, None, target[full]).sum()


WAYS: dict[str, Callable[..., Tensor]] = {
    "padded": padded,
    "skipping": skipping,
    "chunked": chunked,
}


def measure(way: str, repeats: int) -> str:
    """Median seconds of loss and gradient, and the memory that they added."""
    torch.manual_seed(0)
    hidden = torch.randn(NUM, LENGTH, WIDTH, requires_grad=True)
    weight = (0.05 * torch.randn(VOCAB, WIDTH)).requires_grad_()
    lengths = torch.randint(5, LENGTH + 1, (NUM, 1))  # 22 on average, as published
    target = torch.randint(1, VOCAB, (NUM, LENGTH)) * (torch.arange(LENGTH) < lengths)
    full = target != 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        loss = WAYS[way](hidden, weight, target, full)
        gradients = torch.autograd.grad(loss, [hidden, weight])
        seconds.append(time.process_time() - start)
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    middle = sorted(seconds)[len(seconds) // 2]
    size = [f"{float(gradient.norm()):.6g}" for gradient in gradients]
    return (
        f"{way:10} {middle:8.2f} s {memory:8.0f} MB   loss {float(loss.detach()):.6g}, |∇| {size}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Each way in a process of its own, so that its memory is its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--way", choices=WAYS)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    if options.way:
        print(measure(options.way, options.repeats), flush=True)
        return
    for way in WAYS:
        command = [sys.executable, "-m", "eblvm.benchmarks.speed.projection", "--way", way]
        subprocess.run([*command, "--repeats", str(options.repeats)], check=True)


if __name__ == "__main__":
    main()
