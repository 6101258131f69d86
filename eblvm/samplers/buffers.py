"""Buffers of a program of calls: results share one where they are not needed at the same time."""

from collections.abc import Hashable, Iterable

import torch
from torch import Tensor

__all__ = ["Plan"]


class Plan:
    """The calls of a program in their order, and what each of them reads.

    A result lives from its call to the last one that reads it, or anything that may be a view of
    it. The fewer buffers, the more of them stay in a core's cache.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[Hashable, Tensor | None]] = []
        self.last: dict[Hashable, int] = {}
        self.kept: list[Hashable] = []
        self.parent: dict[Hashable, Hashable] = {}

    def call(self, result: Hashable, reads: Iterable[Hashable], like: Tensor | None = None) -> None:
        """Add a call.

        Arguments:
            result: A name for what it returns.
            reads: Names of what it reads.
            like: What the result looks like, if the call can write to a buffer; otherwise the
                result may be a view of anything that was read.
        """
        time = len(self.calls)
        self.calls.append((result, like))
        self.last[result] = time
        for name in reads:
            self.last[name] = time
            if like is None:
                self.parent[self._root(name)] = self._root(result)

    def read(self, names: Iterable[Hashable]) -> None:
        """Say that the last call's result and others are read once more right after it."""
        for name in names:
            self.last[name] = len(self.calls) - 1

    def keep(self, result: Hashable) -> None:
        """Say that a result is handed out: it gets no buffer, for the next run would change it."""
        self.kept.append(result)

    def is_kept(self, name: Hashable) -> bool:
        """Whether a result is handed out, or something that may be a view of it."""
        return self._root(name) in {self._root(kept) for kept in self.kept}

    def buffers(self) -> list[Tensor | None]:
        """One entry per call: the buffer for its result, or None."""
        last: dict[Hashable, int] = {}
        for name, time in self.last.items():
            root = self._root(name)
            last[root] = max(time, last.get(root, -1))
        busy: list[tuple[int, Tensor]] = []
        free: dict[Hashable, list[Tensor]] = {}
        chosen: list[Tensor | None] = []
        for time, (result, like) in enumerate(self.calls):
            root = self._root(result)
            if like is None or self.is_kept(result):
                chosen.append(None)
                continue
            for until, buffer in busy:
                if until < time:
                    free.setdefault(_layout(buffer), []).append(buffer)
            busy = [entry for entry in busy if entry[0] >= time]
            at_hand = free.get(_layout(like))
            buffer = at_hand.pop() if at_hand else torch.empty_like(like)
            busy.append((last[root], buffer))
            chosen.append(buffer)
        return chosen

    def _root(self, name: Hashable) -> Hashable:
        while name in self.parent and self.parent[name] != name:
            name = self.parent[name]
        return name


def _layout(x: Tensor) -> Hashable:
    return x.shape, x.stride(), x.dtype, x.device
