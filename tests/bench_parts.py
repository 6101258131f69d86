"""The smallest suite."""

from pathlib import Path

TINY = Path(__file__).with_name("tiny.yaml")

SUITE = """
about: As small as can be.
tables:
  - name: tiny
    title: Random images
    metrics: {loss: lower}
    budget: {epochs: 1}
    cells:
      - {recipe: TINY, label: tiny}
      - {recipe: TINY, label: broken, options: [--model.init_args.nothing=1]}
      - {recipe: TINY, label: longer, budget: {epochs: 2}}
    published:
      - {label: theirs, source: "Someone, 2020", metrics: {loss: 1.5}}
"""
