# Everything runs in a virtual environment of its own, made on first use:
#   make demo [PHOTO=my.jpg]   explain a photograph with the weights in the package
#   make test                  run the tests
#   make lint                  check style and types

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PHOTO ?=

.PHONY: demo test lint format clean

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "vimlrp needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-%: pyproject.toml setup.py $(wildcard kernels/csrc/*) | $(BIN)/python
	@echo "installing vimlrp[$*] into $(VENV); the first time this takes some minutes"
	$(PIP) --editable '.[$*]'
	@touch $@

demo: $(VENV)/.installed-demo
	$(BIN)/python demos/explain_photo.py $(PHOTO)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python tests/check_types.py

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist *.egg-info
