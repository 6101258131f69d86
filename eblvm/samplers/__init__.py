"""Markov chain Monte Carlo on any energy: functions and frozen settings, `torch` only."""

from .langevin import Langevin
from .noise import noise_like
from .score import EnergyFn, score

__all__ = ["EnergyFn", "Langevin", "noise_like", "score"]
