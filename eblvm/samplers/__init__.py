"""Markov chain Monte Carlo on any energy: functions and frozen settings, `torch` only."""

from .chain import Chain, Sampler
from .frozen import frozen
from .langevin import Langevin
from .noise import noise_like
from .score import EnergyFn, score

__all__ = ["Chain", "EnergyFn", "Langevin", "Sampler", "frozen", "noise_like", "score"]
