# make demo: the main job on bundled data.  make test: the test suite.  make check: lint, types, docs, examples, browser.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test check lint types docs examples browser install clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing isopath and what it needs into $(VENV) ..."
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/isopath demo --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(STAMP)
	@$(BIN)/python -m pytest -n 2

check: lint types docs examples browser

lint: $(STAMP)
	$(BIN)/ruff check src tests benchmarks examples docs

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m pytest --doctest-modules src/isopath --ignore=src/isopath/cli.py
	$(BIN)/python docs/check.py

examples: $(STAMP)
	@for file in examples/*.py; do echo "$$file"; $(BIN)/python $$file || exit 1; done

browser: $(STAMP)
	@command -v $${CHROMIUM:-chromium} >/dev/null || (apt-get update -qq && apt-get install -y -qq chromium >/dev/null)
	$(BIN)/python -m pytest -m browser

clean:
	rm -rf $(VENV) build dist src/*.egg-info
