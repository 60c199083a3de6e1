# make demo    install, then run the main job on a small model, all on this machine
# make fuzz    ten thousand hostile jobs, records and shards, in some minutes
# make test    install if need be, then lint, types and every test
# make bench   install if need be, then hold speed and agreement of the engines against their targets
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test fuzz lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; say which with: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/producer run --model demo --num-images 4 --num-steps 20 --max-images 2 --step-stride 4 \
		--bits 2,4,8 --workers 2 --calib-dir demo_data

test: $(STAMP) lint
	$(BIN)/pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# 10,000 hostile jobs, records and shards of each kind; the tests take 200.
fuzz: $(STAMP)
	BITFLEET_FUZZ=10000 $(BIN)/pytest tests/test_hostile.py --durations=5

bench: $(STAMP)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo_data
