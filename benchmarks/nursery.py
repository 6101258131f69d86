"""What a cell's process has imported when it begins, where it is a fork of one that imports this.

That one outlives a SIGTERM to its group, so that it can tell the suite how its cells have ended; it
ends with the suite.
"""

import pkgutil
import signal
from importlib import import_module

import matplotlib.figure  # noqa: F401
import sklearn.datasets  # noqa: F401
import torchvision.utils  # noqa: F401

import eblvm
from eblvm.benchmarks.cell import commit

signal.signal(signal.SIGTERM, signal.SIG_IGN)  # cells set it back
for found in pkgutil.walk_packages(eblvm.__path__, "eblvm."):
    if not found.name.startswith("eblvm.benchmarks") and not found.name.endswith("__main__"):
        import_module(found.name)  # all, so that no cell mixes this version with a later one
commit()
