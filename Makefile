# make quickstart   install; six methods on real digits, a short training each; a report as a page
# make digits       train a latent-space EBM prior on them to the end, test it, draw samples
# make test         install with the test extra; lint, types, and all tests but the slow ones
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
RUNS ?= runs
DIGITS := $(RUNS)/image/lebm_digits

.PHONY: help install quickstart digits test lint bench-samplers

help:
	@sed -n 's/^# //p' Makefile

install: $(VENV)/installed
quickstart: $(VENV)/installed
	$(BIN)/eblvm bench quickstart --out $(RUNS)/bench/quickstart --resume

digits: $(VENV)/installed
	$(BIN)/eblvm fit --config image/lebm_digits --runs $(RUNS)
	@run=$$(ls -td $(DIGITS)/version_* | head -n 1) && \
	$(BIN)/eblvm test --ckpt_path "$$run/checkpoints/best.ckpt" && \
	$(BIN)/eblvm sample --ckpt "$$run/checkpoints/best.ckpt" --num 64 --out "$$run/samples.png"

test: $(VENV)/tests-installed lint
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: $(VENV)/tests-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench-samplers: $(VENV)/bench-installed
	OMP_NUM_THREADS=1 $(BIN)/python -m eblvm.benchmarks.speed.samplers

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/tests-installed: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[test]'
	@touch $@ $(VENV)/installed

$(VENV)/bench-installed: setup.cfg pyproject.toml constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[bench]'
	@touch $@
