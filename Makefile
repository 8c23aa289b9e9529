# Every target makes its own .venv and installs what it needs; Python 3.11 or newer is all that has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-slow lint docs clean

demo: $(VENV)/.installed
	$(BIN)/discern demo --output demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadgroup --runslow

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

clean:
	rm -rf $(VENV) docs/_build docs/generated

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"

$(VENV)/.installed: pyproject.toml $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: pyproject.toml $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable ".[tune,loom]" --group test
	touch $@ $(VENV)/.installed

$(VENV)/.installed-lint: pyproject.toml $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable ".[tune]" --group lint
	touch $@

$(VENV)/.installed-docs: pyproject.toml $(VENV)/bin/pip
	$(BIN)/pip install --quiet --editable ".[tune]" --group docs
	touch $@
