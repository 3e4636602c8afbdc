# make reproduce   the record checked, the pages and the book, from a fresh checkout
# make test        everything CI checks
# make quick       what to run at every edit
# All may be interrupted and run again: what is done is kept and nothing is left half written.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup reproduce test quick faults smoke study paper record figures bench book pdf worksheets slides serve clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/dcd-setup
# Python compiles a module once, not in every process that starts.
unexport PYTHONDONTWRITEBYTECODE
PORT ?= 8000
PROFILE ?= study
WORKERS ?= 2
ARGS ?=

# Which Python makes .venv; empty: python3.11, or python3 or python where that is 3.11.
PYTHON ?=
is_311 = -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' >/dev/null 2>&1
# PyTorch is built for 64-bit systems and, on Linux, for glibc; elsewhere pip would search in vain.
has_torch = -c 'import platform, sys; sys.exit(sys.maxsize < 2**32 or (sys.platform == "linux" and platform.libc_ver()[0] != "glibc"))'

# What .venv must hold: the declared dependencies, their tested versions and what is compiled.
want = $$(cat pyproject.toml constraints.txt dcd_core/wavelet/fast/filterbank.c | cksum)
# torch is named in the call itself: a looser range would bring gigabytes of CUDA libraries.
torch = $$(grep '^torch==' constraints.txt)

run = $(BIN)/python notebooks/run.py
runs = $(BIN)/python notebooks/study.py
page = $(CURDIR)/book/_build/html/index.html

help: ## show this list
	@awk -F ':.*## ' '/^[a-z ]+:.*## / { printf "  make %-23s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with python 3.11 and the tested versions (does nothing when it is up to date)
	@if [ "$$(cat $(STAMP) 2>/dev/null)" = "$(want)" ] && $(BIN)/python -c '' 2>/dev/null; then exit 0; fi; \
	if ! $(BIN)/python -m pip --version >/dev/null 2>&1 && \
	   ! $(BIN)/python -m ensurepip >/dev/null 2>&1; then \
		python="$(PYTHON)"; \
		for name in python3.11 python3 python; do \
			if [ -z "$$python" ] && "$$name" $(is_311); then python="$$name"; fi; done; \
		if ! "$$python" $(is_311); then \
			echo "make: python 3.11 was not found$${python:+ ($$python is another)}; install it or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; fi; \
		if ! "$$python" $(has_torch); then \
			echo "make: PyTorch is not built for this system; it needs 64 bits and, on Linux, glibc" >&2; exit 1; fi; \
		echo "creating $(VENV) with $$python"; \
		"$$python" -m venv --clear $(VENV) || { \
			echo "make: $$python cannot make a virtual environment; Debian and Ubuntu need the package python3.11-venv" >&2; exit 1; }; \
	fi; \
	$(BIN)/python $(is_311) || { \
		echo "make: $(VENV) is not Python 3.11; remove it (rm -r $(VENV)) and run make again" >&2; exit 1; }; \
	echo "installing the tested versions into $(VENV)"; \
	$(BIN)/python -m pip install --disable-pip-version-check \
		-e '.[dev]' -c constraints.txt "$(torch)" || { \
		echo "make: pip could not install the packages; it needs a package index (check the network, or PIP_INDEX_URL). What was loaded is kept: run make again" >&2; exit 1; }; \
	echo "$(want)" > $(STAMP)

reproduce: ## check the record, run the notebooks on it, build the book; a table of the checks
	@$(MAKE) --no-print-directory setup
	@$(runs) verify --workers $(WORKERS) --quiet
	@$(run) --profile study
	@$(MAKE) --no-print-directory book
	@$(runs) verify
	@echo "book: $(page)"

# Two processes: the tests of a file stay together and share what its fixtures train and build.
pytest = $(BIN)/python -m pytest -n 2 --dist loadfile
# nbval runs the notebooks that need no other one, cell by cell; the suite runs all in their order.
first_pages = $(wildcard notebooks/0[123]-*.ipynb)

test: setup ## all checks: ruff, mypy, pytest with the book, its pages in a browser, the notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(pytest) --nbval-lax --nbval-current-env tests $(first_pages) $(ARGS)

quick: setup ## the fast checks, for every edit: ruff, and the tests that are not marked slow
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(pytest) -m "not slow" tests $(ARGS)

faults: setup ## damage files, kill work and read hostile ones, many times: minutes; counts at the end
	DCD_FAULTS=1 $(BIN)/python -m pytest tests/faults $(ARGS)

smoke study paper: setup ## run the notebooks of a profile: seconds, minutes from the record, days
	$(run) --profile $@ $(ARGS)

record: setup ## train the runs of the study that the record lacks: long; it may be interrupted
	nice $(runs) run --workers $(WORKERS) $(ARGS)

figures: setup ## draw every figure of PROFILE again (finished training in runs/ is used, not repeated)
	$(run) --profile $(PROFILE) --force $(ARGS)

bench: setup ## time loss, metrics, preparation, methods against their peers: minutes, on an idle machine
	$(BIN)/python benchmarks/loss.py $(ARGS)
	$(BIN)/python benchmarks/metrics.py $(filter --quick,$(ARGS))
	$(BIN)/python benchmarks/preparation.py $(filter --quick,$(ARGS))
	$(BIN)/python benchmarks/deployment.py $(filter --quick,$(ARGS))
	$(BIN)/python benchmarks/methods.py $(filter --quick,$(ARGS))
	$(BIN)/python benchmarks/shipping.py $(filter --quick,$(ARGS))

# A failed build forgets its cache: Sphinx repeats no warning for pages it has already read, and the
# next build would pass by silence.
book: setup ## build the book from the executed notebooks in book/notebooks
	@$(BIN)/jupyter-book build book --config _config.yml --path-output book -W -n --keep-going || { \
		rm -rf book/_build/.doctrees; exit 1; }

pdf: book ## print the whole book into one PDF beside its pages, by Chromium: two minutes
	@$(BIN)/python book/_ext/printed.py

worksheets: setup ## notebooks for a class, without solutions and outputs, in book/_build/worksheets
	$(BIN)/python notebooks/worksheets.py $(ARGS)

slides: book ## slides of the first lesson, from page 01, in book/_build/html/slides
	$(BIN)/python notebooks/slides.py $(ARGS)

serve: ## show the built book at http://127.0.0.1:PORT
	@test -f $(page) || { echo "make: there is no book yet; run make book" >&2; exit 1; }
	@echo "http://127.0.0.1:$(PORT) (end with Ctrl-C)"
	@$(BIN)/python -m http.server $(PORT) --bind 127.0.0.1 --directory book/_build/html

clean: ## remove what can be made again: the built book, caches, smoke results (not .venv, not runs)
	rm -rf book/_build results/smoke figures/smoke .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find dcd_core dcd_lab tests notebooks benchmarks book -name __pycache__ -type d -prune -exec rm -rf {} +
