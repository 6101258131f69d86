"""What the README shows runs."""

import re
from pathlib import Path

from eblvm.cli import recipe_names

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
SHORT = (
    "max_epochs=1, limit_train_batches=2, limit_val_batches=1, log_every_n_steps=1, logger=False, "
    "enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False"
)


def test_the_example_in_python_trains_and_samples(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert "max_epochs=10" in code
    names: dict = {}
    exec(code.replace("max_epochs=10", SHORT), names)
    assert names["images"].shape == (64, 1, 8, 8)


def test_recipes_it_names_exist():
    named = re.findall(r"--config ([\w/]+)|recipes show ([\w/]+)", README)
    assert named and {a or b for a, b in named} <= set(recipe_names())
