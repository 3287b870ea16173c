# Everything a newcomer types. `bootstrap.py` says how long each step takes and what it downloads.
PYTHON ?= python3
BIN := .venv/bin
JOBS ?= $(shell expr $$(nproc) \* 3 / 2)
unexport PYTHONDONTWRITEBYTECODE

.PHONY: up core dev ui test test-slow lint format bench docs lock clean

up: core            ## install what is missing, start Noria on 127.0.0.1:8000
	@$(PYTHON) bootstrap.py console-if-possible models
	@$(BIN)/noria up $(ARGS)

core:
	@$(PYTHON) bootstrap.py core

dev:
	@$(PYTHON) bootstrap.py dev console models

ui: core            ## build the console
	@$(PYTHON) bootstrap.py console

test: dev           ## all tests but the long proofs, in half as many processes again as there are cores: a third of the time tests wait
	$(BIN)/python -m pytest -m "not slow" -n $(JOBS) --maxprocesses 8 --dist loadscope --reruns 1 -rR $(ARGS)

test-slow: dev      ## the long proofs at full scale
	$(BIN)/python -m pytest -m slow --timeout 7200 $(ARGS)

lint: dev           ## style, types, import contracts, generated docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

format: dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: core         ## short form of every benchmark
	$(BIN)/python bench/gateway.py --short

docs: dev           ## regenerate docs/reference
	$(BIN)/python docs/generate.py

lock:               ## resolve again (needs uv)
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml -o locks/core.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml --group dev -o locks/dev.txt
	uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml --extra train --overrides locks/no-torch.txt -o locks/train.txt

clean:
	rm -rf .venv src/noria/web/static ui/node_modules bench/out tests/out
