# Every target makes its own .venv and installs what it needs; Python 3.11 or newer is all that has to be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

PYTHONS ?= 3.11 3.12 3.13
TESTS ?=
TAG ?=

.PHONY: demo test test-slow test-matrix test-lowest lint docs dist release-check clean

demo: $(VENV)/.installed
	$(BIN)/discern demo --output demo

# Fails as well if the tests run less of the code, branches counted, than the floor in pyproject.toml.
test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadgroup --cov --cov-report=term:skip-covered

test-slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n 2 --dist loadgroup --runslow

# The tests on each Python of PYTHONS, then with the lowest versions allowed; TESTS="tests/data/test_processed.py" for some of them.
test-matrix: $(VENV)/.installed-release
	$(BIN)/python tools/test_matrix.py $(PYTHONS:%=--python %) --lowest $(firstword $(PYTHONS)) --results build/matrix.json -- $(TESTS)

test-lowest: $(VENV)/.installed-release
	$(BIN)/python tools/test_matrix.py --lowest $(firstword $(PYTHONS)) -- $(TESTS)

lint: $(VENV)/.installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed-docs
	$(BIN)/sphinx-build -W --keep-going -b html docs docs/_build/html

# Wheel and sdist; each installed where nothing else is, and the demo run with it.
dist: $(VENV)/.installed-release
	rm -rf dist build/dist
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	mkdir -p build/dist
	for file in $(CURDIR)/dist/*; do \
		$(PYTHON) -m venv --clear build/dist/fresh && build/dist/fresh/bin/pip install --quiet "$$file" && \
		(cd build/dist && fresh/bin/discern demo --output "demo-$${file##*.}") || exit 1; \
	done

# Do version, changelog, citation and recipes agree, and is nothing unreleased? TAG=v2.0.0: with this tag too.
release-check:
	$(PYTHON) tools/release_check.py $(TAG)

clean:
	rm -rf $(VENV) build dist docs/_build docs/generated

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

$(VENV)/.installed-release: pyproject.toml $(VENV)/bin/pip
	$(BIN)/pip install --quiet --group release
	touch $@
