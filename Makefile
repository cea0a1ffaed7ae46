# make quickstart   the main job, told as a story          make check   format, lint, types, arrows, generated files
# make test         every test                             make help    this list
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

.PHONY: help venv quickstart test check deploy-check format generate lock dist bench clean system-packages tools
help:
	@sed -n '1,2p' Makefile

$(VENV)/installed: requirements.txt pyproject.toml setup.py
	@echo "installing into $(VENV), once: a minute or more, most of it downloads"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

venv: $(VENV)/installed

quickstart: venv
	@$(BIN)/python examples/quickstart.py

system-packages:
	@sh .ci/system-packages

# Helm, which Debian lacks.
tools: venv
	@sh .ci/build-tools $(VENV)

test: venv system-packages tools
	$(BIN)/python -m pytest -n $(JOBS) tests

check: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python proto/generate.py --check
	$(BIN)/python docs/generate.py --check

# A second opinion on what we ship, by tools too heavy for every run.
deploy-check: venv
	@sh .ci/build-tools $(VENV) --all
	@sh .ci/deploy-check $(BIN)

format: venv
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

generate: venv
	$(BIN)/python proto/generate.py
	$(BIN)/python docs/generate.py

# Names, versions and hashes only: the files must install from any index. requirements-run.txt: what runs, without what
# builds and tests.
lock: venv
	$(BIN)/pip-compile --quiet --extra dev --extra all --generate-hashes --allow-unsafe --strip-extras \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options --no-header -o requirements.txt pyproject.toml
	$(BIN)/pip-compile --quiet --extra all --constraint requirements.txt --generate-hashes --allow-unsafe --strip-extras \
	    --no-emit-index-url --no-emit-find-links --no-emit-trusted-host --no-emit-options --no-header --no-annotate \
	    -o requirements-run.txt pyproject.toml

# A reproducible wheel, its SBOM and their checksums, in dist/.
dist: venv
	$(BIN)/python deploy/release.py dist

bench: venv
	$(BIN)/python -m bench

clean:
	rm -rf $(VENV) build dist *.egg-info
