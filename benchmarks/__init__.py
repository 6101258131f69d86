"""Suites of recipes, their runner, and speed benchmarks."""
