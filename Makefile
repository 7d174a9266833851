# `make serve` serves the bundled model, `make test` runs the default test suite; both build .venv by themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# TORCH=cpu takes PyTorch's small CPU build from PyTorch's own index (Linux: the default build carries CUDA).
TORCH ?=
# ENGINE=llama serves the bundled model as a GGUF file, which is written into the cache folder on first use.
ENGINE ?=
GGUF := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/onsight/gguf
TORCH_INDEX := $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu,)

.PHONY: help install serve test test-hard test-slow test-all test-clients test-anywhere fidelity check format bench soak faults readme openapi clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

install: $(VENV)/.installed ## build .venv with everything that serving and testing need

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH_INDEX) --constraint constraints.txt --editable '.[dev,ui]'
	touch $@

.DELETE_ON_ERROR:

# Written anew when the model or its writer changes.
$(GGUF)/peek.gguf: $(wildcard src/onsight/bundled/peek/*) training/export_gguf.py | install
	$(BIN)/python -m training.export_gguf $(GGUF)

serve: install $(if $(filter llama,$(ENGINE)),$(GGUF)/peek.gguf) ## serve the bundled models and the page on 127.0.0.1:8000 (ONSIGHT_HOST, ONSIGHT_PORT); ENGINE=llama: on llama.cpp
ifeq ($(ENGINE),llama)
	exec $(BIN)/onsight serve $(GGUF)/peek.gguf
else
	exec $(BIN)/onsight serve
endif

test: install ## run the default test suite, a process for every core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

test-browser: install ## run the page's tests in Debian's Chromium, and take the pictures in docs/images/page/
	command -v chromium >/dev/null || apt-get install -y chromium
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[browser]'
	$(BIN)/python -m pytest -m browser tests/browser

test-slow: install ## run the tests that take minutes
	$(BIN)/python -m pytest -m slow

test-all: install ## run the default suite and the tests that take minutes
	$(BIN)/python -m pytest -m 'not gpu and not browser and not ray and not runpod and not deploy and not clients'

test-anywhere: install ## run the tests of what is shipped: RunPod's handler, Ray, the chart, the containers' files, the package
	$(BIN)/python -m pip install --quiet $(TORCH_INDEX) --constraint constraints.txt --editable '.[dev,runpod,ray,deploy]'
	$(BIN)/python -m pytest -m 'runpod or deploy or ray'

test-clients: install ## try OpenAI's SDKs and LangChain's suite on a server (needs node); the table goes to docs/results/clients.md
	$(BIN)/python -m tests.clients.table

fidelity: install ## compare every family with its reference; the table goes to docs/results/fidelity.md
	$(BIN)/python -m tests.engines.fidelity_table

check: install ## lint, types, import layers, sizes
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## put the code into the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: install ## measure Onsight beside its peers; tables go to benchmarks/results/
	$(BIN)/python -m benchmarks.chat
	$(BIN)/python -m benchmarks.second_question
	$(BIN)/python -m benchmarks.health
	$(BIN)/python -m benchmarks.start
	$(BIN)/python -m benchmarks.sweep

soak: install ## put a server under half again as much as it can do for 30 minutes (MINUTES=); writes docs/results/soak.md
	$(BIN)/python -m benchmarks.soak --minutes $(or $(MINUTES),30)

faults: install ## do each fault to a real server; the table goes to docs/results/faults.md
	$(BIN)/python -m benchmarks.faults

test-hard: install ## run the tests that break and flood a server, the slow ones too
	$(BIN)/python -m pytest -m 'not gpu' tests/reliability tests/security

readme: install ## run the README's commands and write what they print into it
	$(BIN)/python -m tests.readme

openapi: install ## write openapi.json
	$(BIN)/onsight openapi

clean: ## remove .venv and caches
	rm -rf $(VENV) .clients .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
