# Everything from a fresh clone: `make demo`, `make test`. Only Python (>= 3.11) and make are needed.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SHARED ?= $(or $(RELIEF3D_SHARED),../shared)
NODE_MODULES ?= $(CURDIR)/build/node_modules

.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit validate stress bench eval format clean

help:
	@echo "make demo      install, render a procedural room, reconstruct and evaluate it"
	@echo "make test      install, lint, types, all tests"
	@echo "make validate  checks by foreign programs (glTF validator, headless Chromium)"
	@echo "make stress    the full counts of random damage on every file format, and of killed training and labelling runs"
	@echo "make bench     speed and memory benchmarks; writes results/foundation/"
	@echo "make eval      every evaluation protocol on its procedural twin, with plain baselines; writes results/evaluation/"
	@echo "make format    rewrite the code style"

# torch first and through the constraints file: an unpinned torch may pull gigabytes of CUDA packages.
$(VENV)/run.stamp: pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('relief3d needs Python 3.11 or newer') if sys.version_info < (3, 11) else 0"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e '.[all]'
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp tests/requirements.txt
	$(PIP) install -q -c constraints.txt -e '.[all,dev]' -r tests/requirements.txt
	@touch $@

demo: $(VENV)/run.stamp
	$(BIN)/relief3d demo --out demo_out --overwrite

test: lint types unit

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks

types: $(VENV)/dev.stamp
	$(BIN)/mypy

unit: $(VENV)/dev.stamp
	RELIEF3D_SHARED="$(SHARED)" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

# npm and Chromium are used when present; without them the checks are skipped with a printed reason.
validate: $(VENV)/dev.stamp
	@if command -v npm >/dev/null; then npm install --silent --no-fund --no-audit --prefix $(dir $(NODE_MODULES)) gltf-validator@2.0.0-dev.3.10; fi
	RELIEF3D_NODE_MODULES="$(NODE_MODULES)" $(BIN)/python -m pytest tests/validate -m validate -rA

stress: $(VENV)/dev.stamp
	RELIEF3D_STRESS=60 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/io/test_bad_files.py tests/io/test_random_damage.py tests/train/test_kill.py \
		tests/models/metric/test_onnx_export.py -n 2 --timeout 3600 -rA
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/labelling_kills.py --kills 8 --items 80 --json results/labelling/kills.json

bench: $(VENV)/dev.stamp
	RELIEF3D_SHARED="$(SHARED)" $(BIN)/python benchmarks/run_all.py

# Interrupted runs continue; about an hour on two idle cores.
eval: $(VENV)/run.stamp
	OMP_NUM_THREADS=1 $(BIN)/relief3d eval all --budget mini
	$(BIN)/python benchmarks/render_evaluation.py

format: $(VENV)/dev.stamp
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

clean:
	rm -rf $(VENV) build demo_out .mypy_cache .ruff_cache .pytest_cache .hypothesis
