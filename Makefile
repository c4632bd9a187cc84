# `make` lists what there is. Another interpreter: `make test PYTHON=python3.13`.
PYTHON ?= python3
ARGS ?=

BIN := .venv/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
STAMP := .venv/twinformer.stamp
SEED ?= $(shell date +%s)
SEED := $(SEED)
RANDOM_TESTS := $(addprefix parity_tests/test_,$(addsuffix .py,linear embedding softmax activation normalization dropout \
	loss position mask attention flash_attention linear_attention feed_forward token_shift block model parameters metamorphic optimizer decode))

.DEFAULT_GOAL := help
.PHONY: help train test test-random test-deep bounds mutants generic-mutants figures blog bench lint clean

help:
	@echo "make train           train a character-level language model on Shakespeare (ARGS='--steps 10' passes options)"
	@echo "make test            run the whole test suite (ARGS='-k attention' passes options to pytest)"
	@echo "make test-random     the proof on a few fresh random examples; SEED=N repeats them"
	@echo "make test-deep       the proof on 10,000 random examples per operation: hours"
	@echo "make lint            check style and types"
	@echo "make bounds          write parity_tests/BOUNDS.md, the worst error/bound of every comparison"
	@echo "make mutants         make classic mistakes on purpose and write down which test notices: parity_tests/MUTANTS.md"
	@echo "make generic-mutants change the twins in every place that a machine finds (ARGS='--count 100'): hours"
	@echo "make figures         draw every figure from committed results, and renew the texts that quote them"
	@echo "make blog            build the site, blog/site/index.html: the post, the annotated source, the reports"
	@echo "make bench           measure both twins and their peers on this machine: twenty minutes (ARGS='--size tiny': seconds)"
	@echo "make clean           remove the environment, caches and build artefacts; runs/ stays"

train: $(STAMP)
	$(BIN)/twinformer train $(ARGS)

# One thread a process: the tests are many small arrays, and threads of two processes would fight over the cores.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)
	$(if $(ARGS),,@$(MAKE) --no-print-directory test-random)

# New examples every time; what fails prints how to reproduce it, and SEED repeats the whole.
test-random: $(STAMP)
	@echo "fresh random examples; to replay them: make test-random SEED=$(SEED)"
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q --hypothesis-profile=random --hypothesis-seed=$(SEED) $(RANDOM_TESTS)

# At least 10,000 examples per operation, failures remembered in the user's cache: hours, for a machine that is free.
test-deep: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --hypothesis-profile=deep parity_tests $(ARGS)

bounds: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -q --write-bounds parity_tests
	$(BIN)/python -m blog.post

mutants: $(STAMP)
	$(BIN)/python -m parity_tests.mutate $(ARGS)
	$(BIN)/python -m blog.post

generic-mutants: $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[mutants]'
	$(BIN)/python -m parity_tests.generic $(ARGS)

figures: $(STAMP)
	$(BIN)/python -m blog.figures

blog: $(STAMP)
	$(BIN)/python -m blog.build

bench: $(STAMP)
	$(BIN)/twinformer bench $(ARGS)

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
