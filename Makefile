# `make` lists what there is. Another interpreter: `make test PYTHON=python3.13`.
PYTHON ?= python3
ARGS ?=

BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
STAMP := .venv/twinformer.stamp

.DEFAULT_GOAL := help
.PHONY: help train test lint clean

help:
	@echo "make train   train a character-level language model on Shakespeare (ARGS='--steps 10' passes options)"
	@echo "make test    run the whole test suite (ARGS='-k attention' passes options to pytest)"
	@echo "make lint    check style and types"
	@echo "make clean   remove the environment, caches and build artefacts; runs/ stays"

train: $(STAMP)
	$(BIN)/twinformer train $(ARGS)

# One thread a process: the tests are many small arrays, and threads of two processes would fight over the cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The stamp is touched last, so an interrupted installation is taken up again by the next make.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' || \
	{ echo "twinformer needs Python 3.11 to 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.[test]'
	@touch $(STAMP)

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
