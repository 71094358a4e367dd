# Every target sets up what it needs; a machine needs Python 3.11 to 3.13 and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# Many machines forbid it, as images of containers do: then each of the dozens of processes below compiles every module
# anew, NeMo's alone for twenty seconds.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo up test lint bench screenshots lock forget clean

help:  ## say what each target does
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY)  ## virtual environment with the locked dependencies

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
		{ echo "Soundstage needs Python 3.11, 3.12 or 3.13; '$(PYTHON)' is another: make PYTHON=python3.12 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --python $(BIN)/python --quiet --require-hashes --requirement requirements.lock
	$(BIN)/uv pip install --python $(BIN)/python --quiet --no-deps --editable .
	touch $(READY)

demo: $(READY)  ## quarters of audio to an approved, served model; prints each step
	$(BIN)/soundstage demo

up: $(READY)  ## Dagster, MLflow, the pages and the transcription server, until Ctrl-C
	$(BIN)/soundstage up

test: $(READY)  ## the whole test suite
	$(BIN)/python -m pytest --numprocesses auto

lint: $(READY)  ## format, lint, types, floors
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

bench: $(READY)  ## every benchmark, figures beside bars (SOUNDSTAGE_REAL_DATA names the folder of real recordings)
	@missed=; for each in backfill "backfill --kill" rollback sources store_races written_forms languages real_speech \
		corpus_checks batch channels noise_reduction language_id diarization; do \
		echo "== $$each"; set -- $$each; script=$$1; shift; \
		$(BIN)/python benchmarks/$$script.py "$$@" || missed="$$missed, $$each"; \
	done; test -z "$$missed" || { echo "short of their bars: $${missed#, }"; exit 1; }

screenshots: $(READY)  ## draw the pictures under docs/ again from the running UI (needs Chromium)
	$(BIN)/python docs/screenshots.py

lock: $(READY)  ## resolve the dependencies again
	$(BIN)/uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --upgrade --group dev \
		--python-version 3.11 --output-file requirements.lock pyproject.toml

forget:  ## remove the demo's data store: audio, models, decisions; the environment stays
	rm -rf .soundstage

clean: forget  ## remove the environment, too
	rm -rf $(VENV)
