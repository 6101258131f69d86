"""Tell a newcomer what to do when the package is not installed."""

import importlib.util

if importlib.util.find_spec("eblvm") is None or importlib.util.find_spec("eblvm.models") is None:
    raise RuntimeError(
        "eblvm is not installed in this environment, so `eblvm.models` cannot be imported. "
        "Run `make test`, or `pip install -e '.[test]'` once and then `pytest`."
    )
