# `make demo` and `make test` do all set-up by themselves; they need Python 3.11+ and a package index.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

.PHONY: demo test sim check bench proto format clean

demo: $(VENV)/.demo
	$(BIN)/python -m demo

test: $(VENV)/.dev
	PENSTOCK_TEST_FLOOR=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadgroup tests

sim: $(VENV)/.dev
	$(BIN)/python -m sim persist --jobs $(JOBS)
	$(BIN)/python -m sim committer --jobs $(JOBS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/generate_protocols.py --check

bench: $(VENV)/.bench
	$(BIN)/python -m bench grouped --json
	$(BIN)/python -m bench join --json
	$(BIN)/python -m bench freshness --json
	$(BIN)/python -m bench persist-append --json
	$(BIN)/python -m bench persist-latency --json
	$(BIN)/python -m bench persist-history --json
	$(BIN)/python -m bench persist-open-loop --json
	$(BIN)/python -m bench committer --json

proto: $(VENV)/.dev
	$(BIN)/python tools/generate_protocols.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# Each marker file says that the extra of its name is installed; a changed pyproject.toml installs anew.
$(VENV)/.%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$*]'
	touch $@
