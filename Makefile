# Tidings: `make run` from nothing to a running system. Needs GNU make and Python 3.11+; all else is put into this folder.
# Only relative paths, so that the folder may have any name; tools are called as modules, so that no shebang matters.

PYTHON ?= python3
UV_VERSION := 0.13.9
ZENSICAL_VERSION := 0.0.73
UV := .tools/bin/uv
PY := .venv/bin/python
ENVIRONMENT := .venv/.filled
TIERS := arch unit contract db sim

export UV_PYTHON_DOWNLOADS := never

.DEFAULT_GOAL := help
.PHONY: help run test check fix bench sim docs lock clean

help: ## what can be made
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

run: $(ENVIRONMENT) ## everything on this machine: database, API, worker, demo project, mail catcher
	@exec $(PY) -m tidings up

test: check ## everything that CI runs
	@for tier in $(TIERS); do \
	    [ -d "tests/$$tier" ] || continue; \
	    echo "== tests/$$tier"; \
	    $(PY) -m pytest -q -n 2 "tests/$$tier" || [ $$? -eq 5 ] || exit 1; \
	done
	@if [ -d tests/e2e ]; then echo "== tests/e2e"; $(PY) -m pytest -q tests/e2e || [ $$? -eq 5 ]; fi

check: $(ENVIRONMENT) ## format, lint, types, layers
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

fix: $(ENVIRONMENT) ## format, and mend what the linter can mend
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

bench: $(ENVIRONMENT) ## measure speed; writes bench/results and the README's table
	@$(PY) -m tidings bench
	@$(PY) docs/generate.py

sim: $(ENVIRONMENT) ## simulation with faults: SEEDS=500 for many, SEED=17 for one again
	$(if $(SEEDS),TIDINGS_SIM_SEEDS=$(SEEDS)) $(if $(SEED),TIDINGS_SIM_SEED=$(SEED)) $(PY) -m pytest -q -n 2 tests/sim

docs: $(ENVIRONMENT) ## write the generated parts of the documentation anew, build all of it into site/
	$(PY) docs/generate.py
	$(UV) tool run --from zensical==$(ZENSICAL_VERSION) zensical build

lock: $(UV) ## choose versions anew within pyproject.toml's bounds, for every platform, with hashes
	$(UV) pip compile pyproject.toml --quiet --upgrade --universal --group dev --group bench --generate-hashes \
	    --no-emit-index-url --custom-compile-command "make lock" --output-file requirements.lock

clean: ## remove the environment, tools and caches; the data in .tidings stays
	rm -rf .venv .tools .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist site
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# uv as a wheel from PyPI: into a venv, or, where Python was packaged without ensurepip, into a bare folder.
$(UV):
	@command -v $(PYTHON) >/dev/null || { echo "make: $(PYTHON) is not found; install Python 3.11 or newer, or say PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "make: Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) -V); say PYTHON=python3.13 or the like"; exit 1; }
	@rm -rf .tools
	@if $(PYTHON) -m venv .tools >/dev/null 2>&1; then .tools/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION); \
	elif $(PYTHON) -m pip --version >/dev/null 2>&1; then rm -rf .tools && $(PYTHON) -m pip install --quiet --disable-pip-version-check --target .tools uv==$(UV_VERSION); \
	else rm -rf .tools; echo "make: $(PYTHON) has neither venv with ensurepip nor pip; on Debian: apt install python3-venv"; exit 1; fi
	@test -x $(UV) || { rm -rf .tools; echo "make: uv $(UV_VERSION) could not be installed from PyPI"; exit 1; }

$(ENVIRONMENT): requirements.lock pyproject.toml | $(UV)
	@[ -x $(PY) ] || $(UV) venv --quiet --python "$$(command -v $(PYTHON))" .venv
	@$(UV) pip sync --quiet --require-hashes --python $(PY) requirements.lock
	@$(UV) pip install --quiet --no-deps --python $(PY) --editable .
	@touch $@
