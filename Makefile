# Set-up happens by itself: each target needs .venv, and .venv is made when pyproject.toml or constraints.txt is newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test check format

demo: .venv/ready
	$(BIN)/mimkit demo --overwrite

test: .venv/ready
	$(BIN)/pytest -m "not slow and not gpu"

check: .venv/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mimkit needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@
