# Everything runs in .venv, which the targets create; python3 (3.11 or later, with venv) and make are all that is needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# further arguments for pytest, e.g. make test ARGS="-k certificate -x"
ARGS ?=
# extras that make package tries, each in an environment of its own
EXTRAS ?=

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs package bench clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/demo.stamp  ## prune the hidden layers of a digits classifier and show what is kept, lost and proved
	$(BIN)/nettrim demo

test: $(VENV)/dev.stamp  ## run all tests and the examples in the docstrings
	$(BIN)/python -m pytest --doctest-modules nettrim tests $(ARGS)

lint: $(VENV)/dev.stamp  ## ruff (rules and format) and mypy
	@status=0; for command in "ruff check ." "ruff format --check ." mypy; do \
	  echo "$(BIN)/$$command"; $(BIN)/$$command || status=1; done; exit $$status

# the examples run on one BLAS thread: they are tiny, and a busy machine would make several threads wait for each other
docs: $(VENV)/docs.stamp  ## build docs/_build/html with warnings as errors and run every example in the docs and the README
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs docs/_build/html
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -b doctest docs docs/_build/doctest
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m doctest README.md
	@echo "docs/_build/html/index.html"

package: $(VENV)/dev.stamp  ## build the archives and try the wheel in an environment of its own (EXTRAS="torch demo", or all)
	$(BIN)/python tests/check_package.py $(EXTRAS)

# the short forms run in a copy, so that they leave the figures of bench/results alone
bench: $(VENV)/dev.stamp  ## print the benchmark commands and run two of them in a short form (needs MNIST, see CONTRIBUTING.md)
	@echo "The benchmarks, one command each, JSON into bench/results; report.py puts the figures into the README and the docs:"
	@for command in "solvers.py published" "solvers.py cvxpy" "solvers.py methods" iteration.py startup.py scaling.py rounds.py reweighting.py "pruners.py layers" "pruners.py network" coresets.py network.py convolution.py gpu.py outofcore.py distributed.py report.py; do \
	  echo "  $(BIN)/python bench/$$command"; done
	@test -e bench/cache/mnist_fc.npz || $(BIN)/python bench/mnist.py
	@rm -rf build/bench && mkdir -p build && cp -r bench build/bench && rm -f build/bench/results/*.json
	@echo "Short forms, results in build/bench/results:"
	$(BIN)/python build/bench/iteration.py --samples 1000 --repeats 3
	$(BIN)/python build/bench/solvers.py cvxpy --limit 10 --repeats 1

clean:  ## remove the environment and everything built
	rm -rf $(VENV) build dist *.egg-info docs/_build .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp per set of packages, renewed when what declares them changes. The installs are editable, so that all targets
# share one environment and see the working tree.

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "nettrim needs Python 3.11 or later; choose one with: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
	  || { rm -rf $(VENV); echo "cannot create $(VENV): install Python's venv module (Debian: python3-venv)" >&2; exit 1; }

$(VENV)/demo.stamp: pyproject.toml setup.py | $(BIN)/python
	@echo "installing nettrim[demo] into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --editable ".[demo]"
	@touch $@

# dev holds demo
$(VENV)/dev.stamp: pyproject.toml setup.py | $(BIN)/python
	@echo "installing nettrim[dev] into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/demo.stamp

$(VENV)/docs.stamp: pyproject.toml setup.py | $(BIN)/python
	@echo "installing nettrim[docs] into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@
