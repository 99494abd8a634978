# Everything here sets up what it needs from a fresh clone (in .venv), says what it does, and is fast the second time.
# pip is used plainly, so that its own configuration (mirrors, proxies, certificates) is honoured.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1

.PHONY: help demo test check soak bench clean lint

help:  ## what can be made
	@echo "make demo    real data to a served endpoint that survives being shot at (ARGS=\"--keep --lang zh --data FILE\")"
	@echo "make test    ruff, mypy, import contracts, then unit, sim, integration and e2e tests"
	@echo "make check   the quick part of it: no engines, no processes (under 90 s)"
	@echo "make soak    the long counts of the kill and fuzz tests"
	@echo "make bench   every measurement, one after another, into bench/out"
	@echo "make clean   remove .venv, caches and bench/out (cells under ~/.lepton_ai are left alone)"

demo: $(VENV)/core.stamp  ## the main job
	@$(BIN)/lepton demo $(ARGS) </dev/null

test: $(VENV)/dev.stamp lint  ## the whole suite; pytest's closing line is the last one
	@.ci/setup postgres
	@.ci/setup isolation
	@.ci/setup docker
	@.ci/setup lep
	@echo "== pytest: unit, sim, integration, e2e"
	@$(BIN)/python -m pytest -q tests </dev/null

check: $(VENV)/dev.stamp lint
	@echo "== pytest: unit, sim"
	@$(BIN)/python -m pytest -q tests/unit tests/sim </dev/null

soak: $(VENV)/dev.stamp
	@.ci/setup postgres
	@.ci/setup isolation
	@.ci/setup docker
	@.ci/setup lep
	@echo "== pytest: soak"
	@LEPTON_AI_SOAK=1 $(BIN)/python -m pytest -q -m soak tests </dev/null

bench: $(VENV)/dev.stamp
	@mkdir -p bench/out
	@failed=""; for file in $$(grep -l '^if __name__ == "__main__"' bench/*.py); do \
	  echo "== python $$file --out bench/out"; \
	  $(BIN)/python $$file --out bench/out </dev/null || failed="$$failed $$file"; \
	done; \
	if [ -n "$$failed" ]; then echo "failed:$$failed"; exit 1; fi

lint: $(VENV)/dev.stamp
	@echo "== ruff"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@echo "== mypy"
	@$(BIN)/mypy
	@echo "== import contracts"
	@$(BIN)/lint-imports --no-cache

$(VENV)/core.stamp: pyproject.toml
	@.ci/setup core

$(VENV)/dev.stamp: pyproject.toml
	@.ci/setup dev

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build dist bench/out
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
