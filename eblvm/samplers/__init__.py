"""Markov chain Monte Carlo on any energy: functions and frozen settings, `torch` only."""

from .chain import Chain, Sampler
from .frozen import frozen
from .langevin import Langevin
from .score import EnergyFn, score

__all__ = ["Chain", "EnergyFn", "Langevin", "Sampler", "frozen", "score"]
