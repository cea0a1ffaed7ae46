# make quickstart   the main job, told as a story          make check   format, lint, types, arrows, generated files
# make test         every test                             make help    this list
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

.PHONY: help venv quickstart test check format generate lock bench clean system-packages
help:
	@sed -n '1,2p' Makefile

$(VENV)/installed: requirements.txt pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

venv: $(VENV)/installed

quickstart: venv
	@$(BIN)/python examples/quickstart.py

system-packages:
	@sh .ci/system-packages

test: venv system-packages
	$(BIN)/python -m pytest -n $(JOBS) tests

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python docs/generate.py --check

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: venv
	$(BIN)/python proto/generate.py
	$(BIN)/python docs/generate.py

# Names, versions and hashes only: the file must install from any index.
lock: venv
	$(BIN)/pip-compile --quiet --extra dev --generate-hashes --allow-unsafe --strip-extras \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options --no-header -o requirements.txt pyproject.toml

bench: venv
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build dist *.egg-info
