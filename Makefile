# The two commands of the README: `make build` and `make test`. Each does its own set-up, and is quick the second time.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.vsparse-set-up
DATA   ?= $(VSPARSE_DATA)
# Pinned so that a CPU build is taken where one is offered; the package itself allows a range.
TORCH  := torch==2.13.0

.PHONY: build test slow setup lint types mnist wheel clean

build: setup
	$(BIN)/vsparse build digits --target local --set deploy.live=true --verbose

mnist: setup
	$(BIN)/vsparse build mnist --data "$(DATA)" --verbose

test: setup lint types
	OMP_NUM_THREADS=1 VSPARSE_DATA="$(DATA)" $(BIN)/python -m pytest -n 2 --dist loadfile

slow: setup
	OMP_NUM_THREADS=1 VSPARSE_DATA="$(DATA)" $(BIN)/python -m pytest -m slow --timeout 3600

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

wheel: setup
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

setup: $(STAMP)

$(STAMP): pyproject.toml Makefile
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is missing; install Python 3.11 or newer (Debian: apt-get install python3 python3-venv)" >&2; exit 3; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; set PYTHON to a newer one" >&2; exit 3; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: Python's venv module is missing (Debian: apt-get install python3-venv)" >&2; exit 3; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev,cross-check]"
	@# Optional for users; the tests of the cross-check need it. It declares pins that no current torch meets, and works without them.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "auto_LiRPA==0.3"
	@touch $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
