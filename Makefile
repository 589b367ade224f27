# The two commands of the README are `make demo` and `make test`; `make setup` is what both share.
PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= docker/constraints.txt
# Address of a package index to take torch and torchvision from (PyTorch's CPU-only index, say);
# empty: the index that pip is configured with.
TORCH_INDEX ?=
DEMO        ?= runs/demo
DEMO_DATA   ?= data/demo
# Environment of `make proofs`, outside the checkout, and what it runs: PROOF="timm yolo".
CACHE       := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/convroutes
PROOFS      ?= $(CACHE)/proofs
PROOF       ?= timm torchvision diffusers segmentation ranks quantization yolo
# Processes that the test suite runs in, one thread of PyTorch each.
JOBS        ?= 2
# Variants for AMD cards that `make isa` compiles, beside all of gfx1010, and executes, others every day;
# `make isa-all` compiles all, `make amdgcn` executes all.
COMPILED    ?= 200
SAMPLE      ?= 200

# The Triton that the images for AMD cards hold; the environment's own is the one of its torch.
ISA_TRITON := $(shell sed -n 's/^TRITON=//p' docker/profiles/rdna1.env)
ISA        := build/triton-$(ISA_TRITON)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: help setup demo test lint types isa isa-all amdgcn unit wheel proofs clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 22

setup: $(VENV)/.installed  ## make .venv with pinned dependencies

$(VENV)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 10) <= v <= (3, 12) or sys.exit("make setup: found Python %d.%d, expected 3.10 to 3.12: name one with PYTHON=" % v)'
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) install --index-url $(TORCH_INDEX) -c $(CONSTRAINTS) torch torchvision)
	$(PIP) install -c $(CONSTRAINTS) -e '.[dev,fast]'
	touch $@

demo: setup  ## sample data -> prepare -> train -> evaluate -> predict -> submission.zip
	PATH="$(CURDIR)/$(BIN):$$PATH" scripts/demo $(DEMO_DATA) $(DEMO)

test: lint types isa unit  ## everything that must pass

lint: setup  ## ruff and the import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: setup  ## mypy, strict
	$(BIN)/mypy

isa: setup $(ISA)/.installed  ## compile kernels for AMD cards and look for faults, execute some: a sample of the day
	PYTHONPATH=$(ISA) $(BIN)/python scripts/check_amd_isa.py --sample $(COMPILED)
	PYTHONPATH=$(ISA):. $(BIN)/python scripts/execute_amd_kernels.py --sample $(SAMPLE)

isa-all: setup $(ISA)/.installed  ## compile every variant of the kernels for AMD cards (minutes)
	PYTHONPATH=$(ISA) $(BIN)/python scripts/check_amd_isa.py

amdgcn: setup $(ISA)/.installed  ## execute every variant of the kernels as machine code of its card (minutes)
	PYTHONPATH=$(ISA):. $(BIN)/python scripts/execute_amd_kernels.py

$(ISA)/.installed:
	rm -rf $(ISA)
	$(PIP) install --no-deps --target $(ISA) triton==$(ISA_TRITON)
	touch $@

# In the order of the folders: files of few tests, which xdist would put last, are the long ones.
unit: setup  ## the test suite; ARGS="-k name" narrows it, JOBS=1 runs it in one process
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

wheel: setup  ## build two wheels into dist/: the toolkit, and patches/ alone, which serves any program
	$(PIP) wheel -q --no-deps --wheel-dir dist . ./patches

proofs: wheel $(PROOFS)/.installed  ## run models and programs that nobody here wrote through the routes (minutes)
	$(PROOFS)/bin/python -m pip --disable-pip-version-check install -q --no-deps --force-reinstall dist/convroutes-*.whl
	cd $(PROOFS) && OMP_NUM_THREADS=1 bin/python $(CURDIR)/scripts/prove_programs.py $(PROOF)

$(PROOFS)/.installed: $(CONSTRAINTS)
	$(PYTHON) -m venv $(PROOFS)
	$(if $(TORCH_INDEX),$(PROOFS)/bin/python -m pip install --index-url $(TORCH_INDEX) -c $(CONSTRAINTS) torch torchvision)
	$(PROOFS)/bin/python -m pip --disable-pip-version-check install -c $(CONSTRAINTS) torch torchvision timm diffusers \
	  segmentation-models-pytorch ultralytics-opencv-headless onnx torchao
	touch $@

clean:  ## remove the environments and the caches, keep data/, runs/ and what was measured of a card
	rm -rf $(VENV) .venv-docker .venv-rocm52 build dist $(CACHE)/proofs $(CACHE)/isa $(CACHE)/isa-buffer-ops
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

include docker/docker.mk
