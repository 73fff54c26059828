# One word a chore; `make help` lists them.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help venv tests lint types format ci

help:  ## list the chores
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

venv:  ## make .venv with graphopt (editable) and all the tests need
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -c constraints.txt -e '.[test,keras,keras2,torch,tflite]'

tests:  ## run the tests
	$(BIN)/python -m pytest

lint:  ## check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

types:  ## check types
	$(BIN)/python -m mypy

format:  ## rewrite in the project's style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

ci:  ## everything CI checks, in a fresh environment
	.ci/run
