# Set-up, tests and the demo. Needs Python 3.10 or newer and make; everything else lands in .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: setup test test-all lint lock demo demo-model clean

setup: $(VENV)/.installed

# uv installs the pinned set in seconds; --no-deps, because requirements.lock already holds everything.
$(VENV)/.installed: requirements.lock pyproject.toml setup.py
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "Python 3.10 or newer is needed: make PYTHON=python3.11"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $@

# Two processes: what shares one Ray is half of the work, and tests/conftest.py deals out the rest.
test: setup
	$(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-all: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m benchmarks.checks.house

# Pins for every supported Python; run it after a change of the dependencies in pyproject.toml.
lock:
	$(BIN)/uv pip compile --universal --python-version 3.10 --extra dev --no-header --no-emit-index-url \
		--quiet --output-file requirements.lock pyproject.toml

demo: setup
	$(BIN)/maskfleet demo --out demo-output

# The model that the demo shows, made anew: an hour and a half on two cores. A run that was stopped is gone on with.
demo-model: setup
	test -e demo-model/train/instances.json || \
		$(BIN)/python -m jobs.render_scenes --out demo-model/train --count 10000 --seed 1
	test -e demo-model/validation/instances.json || \
		$(BIN)/python -m jobs.render_scenes --out demo-model/validation --count 200 --seed 2
	$(BIN)/maskfleet train --config configs/train_demo.yaml
	cp demo-model/run/best.safetensors jobs/demo_model.safetensors

clean:
	rm -rf $(VENV) demo-output .pytest_cache .mypy_cache .ruff_cache
