"""Whether chains may choose, by measuring time, how they compute."""

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["compilation", "mode"]

_mode = ["auto"]


@contextmanager
def compilation(mode: str) -> Iterator[None]:
    """Choose when chains compile, inside a `with` block.

    Arguments:
        mode: `"auto"` (:mod:`eblvm.samplers.compiled` says when), `"always"` (at the first call
            long enough for one compiled call) or `"never"`. With `"never"` nothing at all is chosen
            by measured time, neither whether steps are compiled nor which routine multiplies
            matrices (:mod:`eblvm.samplers.products`): the same call gives the same numbers in every
            process on one machine.

    Raises:
        ValueError: If the mode is another.
    """
    if mode not in ("auto", "always", "never"):
        raise ValueError(f"mode is {mode!r}; expected 'auto', 'always' or 'never'.")
    before, _mode[0] = _mode[0], mode
    try:
        yield
    finally:
        _mode[0] = before


def mode() -> str:
    """The mode at hand."""
    return _mode[0]
