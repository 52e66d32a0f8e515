# Two commands do all the set-up and the work on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: demo test test-slow test-faults lint types bench clean

demo: $(VENV)/.demo
	$(VENV)/bin/convolt train cnn --data digits --epochs 10 --name demo

# Tests start many processes: what the first one compiles, the next ones find.
test: $(VENV)/.dev
	env -u PYTHONDONTWRITEBYTECODE OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto -m "not slow and not gpu and not faults_full"

test-slow: $(VENV)/.dev
	$(RUN) -m pytest -m slow

test-faults: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(RUN) -m pytest tests/faults -m faults_full

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .

types: $(VENV)/.dev
	$(VENV)/bin/mypy

# MINUTES is the time that the whole round may take; a round that is cut off is continued by the same command.
MINUTES ?= 40
bench: $(VENV)/.dev
	$(RUN) benchmarks/environments.py
	$(RUN) benchmarks/suite.py --minutes $(MINUTES)
	$(RUN) benchmarks/report.py

$(VENV)/.base: pyproject.toml
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install -q -e .
	touch $@

$(VENV)/.demo: $(VENV)/.base
	$(RUN) -m pip install -q -e ".[demo]"
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(RUN) -m pip install -q --no-compile -e ".[dev,demo]"
	touch $@

clean:
	rm -rf $(VENV) build dist runs .pytest_cache .mypy_cache .ruff_cache .hypothesis
