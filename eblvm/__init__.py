"""Energy-based latent-variable models: three distributions and a way to draw negatives.

`import eblvm` is light. Its submodules are attributes and are imported when first touched.
"""

import importlib
from types import ModuleType

__version__ = "0.1.0"

__all__ = [
    "energies",
    "schedules",
    "priors",
    "posteriors",
    "decoding",
    "likelihoods",
    "latent",
    "negatives",
    "matching",
    "divergences",
    "conditions",
    "regularizers",
    "samplers",
    "objectives",
    "metrics",
    "data",
    "clustering",
    "evaluation",
    "text_evaluation",
    "models",
]


def __getattr__(name: str) -> ModuleType:
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {sorted(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
