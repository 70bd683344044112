# Everything sets itself up: a machine with Python 3.11 (or 3.12), make and a package index that pip reaches is enough.
#
#   PYTHON=python3.12   the Python that .venv is made with; by default the first of 3.11, 3.12 that is found
#   VENV=.venv          where it is made
#   TF=2.20             another TensorFlow, in .venv-tf2.20: make test TF=2.20
#   ARGS="-k resume"    more arguments for pytest
#   ALL=1               with test: the tests marked slow too
#   SHORT=1             with demo: a few steps, to see that all works
#   FULL=1              with demo: all steps, however long this machine takes for them

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help install samples demo demo-runs test serve-check lint laws clean

VENV ?= .venv$(if $(TF),-tf$(TF))
PINS := $(if $(TF),constraints-tf$(TF).txt)# what another TensorFlow pins otherwise
PYTHON ?= $(shell for name in python3.11 python3.12 python3; do \
	$$name -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$name && break; done)
ARGS ?=
TEST_TIMEOUT ?= 600# seconds that one test may take

python := $(VENV)/bin/python
installed := $(VENV)/installed

help: ## Print this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

install: $(installed) ## Make .venv with every package at its pinned version

constraints-tf%.txt:
	@echo "error: TF=$(TF) is not supported; there is $(wildcard constraints-tf*.txt), and constraints.txt without TF." >&2; exit 2

# The stamp is written at the end, so an install that was cut short is done again, and one that is done takes no time.
$(installed): setup.py constraints.txt $(PINS)
	@if [ -z "$(PYTHON)" ]; then \
		echo "error: No Python 3.11 or 3.12 was found; install one, or name it: make PYTHON=/path/to/python3.11 ..." >&2; exit 2; fi
	@if ! $(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then \
		echo "error: PYTHON=$(PYTHON) is not Python 3.11 or 3.12." >&2; exit 2; fi
	@if ! $(PYTHON) -c 'import venv, ensurepip' 2>/dev/null; then \
		echo "error: $(PYTHON) has no venv module; on Debian and Ubuntu: apt install $$(basename $(PYTHON))-venv" >&2; exit 2; fi
	@echo "Installing into $(VENV): about 900 MB to fetch at the first time, 3 GB on disk, a few minutes."
	$(PYTHON) -m venv $(VENV)
	awk -F== '!($$1 in pinned); {pinned[$$1] = 1}' $(PINS) constraints.txt > $(VENV)/constraints.txt
	$(python) -m pip install --quiet --disable-pip-version-check --constraint $(VENV)/constraints.txt pip setuptools wheel
	PYTHONWARNINGS=ignore $(python) -m pip install --quiet --constraint $(VENV)/constraints.txt --no-build-isolation --editable '.[test]'
	@touch $@

samples: $(installed) ## Fetch the sample data and the sample model into the user's cache (149 MB, once)
	@$(python) -m aigc_tf.data.sources.samples

# Where the demo keeps its runs. A choice of steps holds for a folder, since a run goes on with the config that it began with.
demo_runs := runs/demo$(if $(SHORT),-short,$(if $(FULL),-full))
demo_models := $(if $(SHORT),$(demo_runs)/)saved_models
demo_variant = $(if $(SHORT),,$$(cat $(demo_runs)/variant))
ifdef SHORT
demo_flags := --config.training.num_steps=20 --config.training.schedule.warmup_steps=2 --config.training.evaluate_every=20 \
	--config.training.checkpoint_every=10 --config.export.directory=$(demo_models)
demo_note := Everything works. After 20 steps the answers mean nothing yet; make demo trains longer. What next:
else
demo_flags :=
demo_note := What next:
endif

demo: samples ## Train a classifier and a generator on real data, evaluate, export and ask them; FULL=1: all steps; SHORT=1: 20 steps
	$(python) scripts/prepare.py --config=configs/bert_sentiment.py
	$(python) scripts/prepare.py --config=configs/gpt_shakespeare.py
	$(if $(SHORT),,@$(python) -m aigc_tf.cli.demo $(demo_runs) $(if $(FULL),full))
	@$(MAKE) --no-print-directory demo-runs variant=$(demo_variant)

# Called by demo, which knows by then what to train: the commands are shown as one would type them.
demo-runs:
	$(python) scripts/train.py --config=configs/bert_sentiment$(variant).py --workdir=$(demo_runs)/bert_sentiment $(demo_flags)
	$(python) scripts/export.py --workdir=$(demo_runs)/bert_sentiment
	$(python) scripts/predict.py --model=$(demo_models)/bert_sentiment \
		--text="A joy from start to finish, and the battery lasts for days." \
		--text="The plot makes no sense and the acting is worse." \
		--text="I would not call it good."
	$(python) scripts/train.py --config=configs/gpt_shakespeare$(variant).py --workdir=$(demo_runs)/gpt_shakespeare $(demo_flags)
	$(python) scripts/generate.py --model=$(demo_runs)/gpt_shakespeare \
		--prompt="HAMLET." --prompt="Enter the Ghost" --prompt="Shall I compare thee to"
	$(python) scripts/export.py --workdir=$(demo_runs)/gpt_shakespeare
	$(python) scripts/generate.py --model=$(demo_models)/gpt_shakespeare --prompt="To be, or not to be"
	@printf '\n%s\n' "$(demo_note)"
	@printf '  %s\n' \
		"look at the training   $(VENV)/bin/tensorboard --logdir=$(demo_runs)" \
		"ask the classifier     $(python) scripts/predict.py --model=$(demo_models)/bert_sentiment --text='...'" \
		"ask the generator      $(python) scripts/generate.py --model=$(demo_runs)/gpt_shakespeare" \
		"take your own data     README.md, section \"Your own data\""

# In the order of tests/conftest.py, the longest files first: xdist would put files of few tests last, which are the
# longest, and one core would idle. A file is run by one process, so that a single one needs no second, which would import TensorFlow as well.
test_files := $(foreach word,$(ARGS),$(findstring .py,$(word)))

# What a change of another room cannot break is marked slow, and left out unless all or some tests are asked for.
test_marks := $(if $(ALL)$(ARGS),,-m "not downloads and not slow")

test: samples ## Run the tests; ALL=1: those marked slow too; ARGS="-k resume" selects some
	$(python) -m pytest --numprocesses=$(if $(filter 1,$(words $(test_files))),0,2) --dist=loadfile --no-loadscope-reorder --timeout=$(TEST_TIMEOUT) $(test_marks) $(ARGS)

# Docker first: where it does not run there is nothing to install for.
serve-check: ## Start tensorflow/serving in Docker with exported models and run the protocol double's test cases
	@docker info >/dev/null 2>&1 || { echo "error: Docker does not run here (docker info fails), so nothing was checked;" \
		"make test runs the same cases against the double." >&2; exit 2; }
	@$(MAKE) --no-print-directory install
	SERVE_CHECK=docker $(python) -m pytest --timeout=1800 -rs tests/serving/server_test.py $(ARGS)

lint: $(installed) ## Check style, types, and that imports point down
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

laws: samples ## Check the laws, print the measured differences and write them into docs/laws.md
	LAWS_PAGE=docs/laws.md $(python) -m pytest --timeout=$(TEST_TIMEOUT) tests/laws tests/line $(ARGS)

clean: ## Remove caches and build leftovers; data, runs, models and .venv stay
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -not -path './.venv*/*' -prune -exec rm -rf {} +
