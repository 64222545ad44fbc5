# The task menu. Every target starts from .venv, which `make venv` creates.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
EXTRAS := demo,s3,http,dev
DEMO ?= demo

.PHONY: help venv demo test test-slow lint types fmt check bench wheel clean

help: ## show this menu
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# torch comes first and alone: resolved together with the rest it may pull gigabytes of CUDA libraries.
.venv/ready: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[$(EXTRAS)]'
	touch .venv/ready

venv: .venv/ready ## create .venv with everything needed to run, test and lint

demo: venv ## raw demo archives → shards → mixture → pre-trained tiny model, with a report
	$(BIN)/python -m jmp_cli.demo $(DEMO)

test: venv ## the tests: seconds each, minutes in all
	$(BIN)/pytest -n 2

test-slow: venv ## the long tests: fault injection, soak, full file-flip
	$(BIN)/pytest -m slow

lint: venv ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv ## mypy
	$(BIN)/mypy jmp_data jmp_model cli

fmt: venv ## format and fix
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint types test ## what CI runs

wheel: venv ## build the wheel into dist/
	$(BIN)/python -m build --wheel --outdir dist .

bench: venv ## the benchmark tables of docs/ (takes a while; run nothing else beside it)
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

clean: ## remove everything that the targets made
	rm -rf .venv dist build demo *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
