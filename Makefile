# fusenotify: everything that a checkout needs. `make` alone lists the targets.

PYTHON ?= python3
ARGS ?=
JOBS ?= 2

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

export PYTHON
# The tests start thousands of programs; to compile each of them anew takes a quarter of their time.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help setup demo test soak check format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo '  ARGS="…" is handed on by demo, test, soak and bench; PYTHON=… chooses the interpreter;'
	@echo '  JOBS=N has N processes run the tests (2; 0: this one, as for a debugger).'

setup: $(STAMP) ## install what is missing: Debian packages, .venv, Python packages

demo: $(STAMP) /dev/fuse ## mount a tree and show remote changes arriving (as root, by sudo)
	$(SUDO) $(PY) examples/demo.py $(ARGS)

test: $(STAMP) /dev/fuse ## run the tests on real mounts (as root, by sudo)
	$(SUDO) $(PY) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

# The random tests are in the files that ask tests/soak.py how much to try.
soak: $(STAMP) /dev/fuse ## run the random tests with everything they can try (as root, by sudo; it takes hours)
	$(SUDO) env FUSENOTIFY_SOAK=1 $(PY) -m pytest --timeout 7200 $$(grep -l 'tests.soak import' tests/test_*.py) $(ARGS)

check: $(STAMP) ## formatting, lint, types, layers
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/ruff check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: $(STAMP) ## format the code and fix what can be fixed by itself
	$(VENV)/bin/ruff check --fix-only
	$(VENV)/bin/ruff format

bench: $(STAMP) /dev/fuse ## measure, side by side with peers (as root, by sudo)
	$(SUDO) $(PY) benchmarks/bench.py $(ARGS)

clean: ## remove .venv, caches and build results
	@set -- $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist; \
	caches=$$(find . -name .git -prune -o -name __pycache__ -prune -print); \
	rm -rf "$$@" $$caches 2>/dev/null || $(SUDO) rm -rf "$$@" $$caches

# The stamp is newer than what decides on the installation.
$(STAMP): pyproject.toml scripts/setup.sh
	./scripts/setup.sh
	@touch $@

# Made only where it is missing.
/dev/fuse:
	./scripts/setup.sh device
