# make demo    install, then run the main job on a small model, all on this machine
# make test    install if need be, then lint, types and every test but the fault loops
# make chaos   faults at full length: every point at which a collector may be killed, every kind of outage
# make soak    ten thousand tasks on eight workers while 500 of them are killed, and Redis killed, frozen, wiped
# make fuzz    ten thousand hostile jobs, records and shards, in some minutes
# make bench   install if need be, then hold speed and agreement of the engines against their targets
# make doctor  check this machine, and write the figures into doctor.json
# make resolve see whether every dependency has a wheel for Macs and Linux, from any machine
# make dist    build wheel and sdist, check them, and start the wheel's commands in an empty environment
# make clean   remove what install and demo made
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check -qq
# A test process for each core, and one more: many tests wait for other processes.
CORES := $(shell getconf _NPROCESSORS_ONLN)
PYTEST := $(BIN)/pytest -n $(shell expr $(CORES) + 1) --maxprocesses 8 --dist worksteal

# Compiled on first import, and only what is imported: pip would spend half of its time on the rest.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: install demo test check lint types chaos soak fuzz bench doctor resolve dist clean

install: $(VENV)/.dev

$(VENV)/.pip:
	@$(PYTHON) shared/supported.py
	$(PYTHON) -m venv $(VENV)
	@# The pip that comes with Python 3.11 takes half as long again.
	$(PIP) install --upgrade pip
	touch $@

# What computes, and no more: a demo need not wait for the tools of the tests.
$(VENV)/.local: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) install --no-compile -c constraints.txt -e '.[local]'
	touch $@

# All of it in one go: a pip asked twice looks at everything twice.
$(VENV)/.dev: $(VENV)/.pip pyproject.toml constraints.txt
	$(PIP) install --no-compile -c constraints.txt -e '.[dev]'
	touch $(VENV)/.local $@

demo: $(VENV)/.local
	$(BIN)/producer run --model demo --num-images 4 --num-steps 10 --max-images 2 --step-stride 2 \
		--bits 2,4,8 --level-images 4 --max-prompts 8 --workers 2 --calib-dir demo_data

# Types beside the tests, many of which wait for something.
test: install lint
	@$(MAKE) --no-print-directory -j 2 types check

# The fault loops are for `make chaos`, which has them at full length.
check: install
	$(PYTEST) -m "not chaos"

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install
	$(BIN)/mypy

chaos: install
	BITFLEET_CHAOS=full $(PYTEST) -m chaos --durations=5

# Some minutes, on 2 cores.
soak: install
	BITFLEET_SOAK=10000 $(BIN)/pytest -s tests/test_soak.py

# 10,000 hostile jobs, records, shards and URLs of each kind; the tests take 100 or 200, the same each time.
HOSTILE := test_hostile test_jobs test_npz test_printable test_records test_safe_url
fuzz: install
	BITFLEET_FUZZ=10000 $(PYTEST) $(HOSTILE:%=tests/%.py) --durations=5

bench: install
	$(BIN)/python -m benchmarks

# Of a check that failed the exit code is 2; the figures are written all the same.
doctor: $(VENV)/.local
	$(BIN)/worker doctor --json > doctor.json || { cat doctor.json; exit 2; }

$(VENV)/.release: $(VENV)/.pip
	$(PIP) install build twine uv
	touch $@

# argmaxtools comes as source of pure Python only.
RESOLVE := $(BIN)/uv pip compile -q --no-header -c constraints.txt --only-binary :all: --no-binary argmaxtools
resolve: $(VENV)/.release
	@for python in 3.11 3.12 3.13; do \
		MACOSX_DEPLOYMENT_TARGET=14.0 $(RESOLVE) --python-platform aarch64-apple-darwin \
			--python-version $$python --extra dev pyproject.toml > /dev/null || exit 1; \
		echo "macOS 14, arm64, Python $$python: every dependency has a wheel"; \
	done
	@for python in 3.11 3.12 3.13; do \
		$(RESOLVE) --python-platform x86_64-manylinux_2_35 \
			--python-version $$python --extra dev pyproject.toml > /dev/null || exit 1; \
		echo "Linux, x86-64, Python $$python: every dependency has a wheel"; \
	done

dist: $(VENV)/.release
	rm -rf dist
	$(BIN)/python -m build --outdir dist .
	$(BIN)/twine check --strict dist/*
	folder=$$(mktemp -d) && $(PYTHON) -m venv $$folder/env && \
		$$folder/env/bin/pip install -qq -c constraints.txt dist/*.whl && cd $$folder && \
		env/bin/producer --version && env/bin/worker --help > /dev/null && rm -rf $$folder

clean:
	rm -rf $(VENV) demo_data dist doctor.json
