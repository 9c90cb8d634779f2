# The doors of the project: make demo | test | check | format | bench | chaos | lock
.DEFAULT_GOAL := help
.PHONY: help demo test check format bench chaos lock clean

# The first interpreter on the PATH that is new enough; PYTHON=… chooses another.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& $$p -c 'import sys; print(sys.executable)' && break; done)
UV_VERSION := 0.13.8
UV := .tools/bin/uv
BIN := .venv/bin

help:
	@echo "make demo    run three tenants' 300 questions on embedded services, with a dependency that fails"
	@echo "make test    every test, on embedded Postgres and Redis"
	@echo "make check   format, lint, types, import rules, compose file: what CI runs first"
	@echo "make format  rewrite the code in the house format"
	@echo "make bench   measure against bare LangGraph and a naive Celery task"
	@echo "make chaos   the long form of the tests that kill processes"
	@echo "make lock    resolve requirements.lock anew"

# uv is taken from a local virtual environment, so nothing is installed outside this folder.
$(UV):
	@test -n "$(PYTHON)" || { echo "Threadmill needs Python 3.11 or newer on the PATH (or PYTHON=/path/to/python)" >&2; exit 1; }
	$(PYTHON) -m venv .tools
	.tools/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.installed: requirements.lock pyproject.toml | $(UV)
	$(UV) venv --quiet --allow-existing --no-python-downloads --python "$(PYTHON)" .venv
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: .venv/.installed
	$(BIN)/threadmill demo

test: .venv/.installed
	$(BIN)/python -m pytest -q --numprocesses 3 --dist loadfile -m "not chaos"
	$(BIN)/python -m pytest -q -m chaos

check: .venv/.installed
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec compose.yaml

format: .venv/.installed
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The lock's versions are constraints here, so that the curves bring nothing that the tests do not know.
bench: .venv/.installed
	$(UV) pip install --quiet --python $(BIN)/python --group bench --constraint requirements.lock
	$(BIN)/python -m bench

chaos: .venv/.installed
	$(BIN)/python -m pytest -q -s tests/chaos --long

lock: | $(UV)
	$(UV) pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-header \
		--python-version 3.11 --all-extras --group test pyproject.toml --output-file requirements.lock

clean:
	rm -rf .venv .tools .threadmill
