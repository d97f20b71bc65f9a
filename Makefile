# Two commands from a fresh clone: `make train` and `make test`. PYTHON=python3.12 chooses another interpreter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SANITIZERS := -g -O1 -fno-sanitize-recover=undefined -fsanitize=address,undefined
FUZZ_S ?= 3600
# The tests of pixels, once more without the native kernel.
PIXELS := $(addprefix tests/test_,$(addsuffix .py,decode transforms resize crops finish image_contract tiny))

.PHONY: help setup native train test check soak sanitize fuzz coverage bench peers clean

help:
	@echo "make train     set up, generate the small synthetic data, train, evaluate"
	@echo "make native    build the optional native kernel in place"
	@echo "make test      set up, then format check, lint, types and the whole test suite"
	@echo "make soak      the long versions of the fault and fuzz tests"
	@echo "make sanitize  the native kernel's soak, built with AddressSanitizer and UndefinedBehaviorSanitizer (gcc)"
	@echo "make fuzz      an hour of libFuzzer on the native kernel (clang); FUZZ_S=60 is a minute"
	@echo "make coverage  the test suite with a coverage report"
	@echo "make bench     this loader beside torch's DataLoader on the small synthetic data"
	@echo "make peers     install other loaders for sweep=peers, each in an environment of its own in .peers/"
	@echo "make clean     remove environments and caches (data/ and outputs/ stay)"

setup: $(READY)

$(READY): pyproject.toml setup.py $(wildcard pipeline/native/*.[ch])
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Headrace needs Python 3.11 or newer; set PYTHON=..."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) \
	  || { echo "no venv module: install python3-venv, or set PYTHON=..."; exit 1; }
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

# Also built by `setup` where a compiler and libjpeg-turbo's headers are (Debian: libjpeg62-turbo-dev).
native: setup
	$(BIN)/python setup.py --quiet build_ext --inplace

train: setup
	$(BIN)/python train.py

# Two files at a time, for most tests wait for processes half of their time: 12 minutes and not 17 on two cores.
test: check
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile
	HEADRACE_NATIVE=0 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(PIXELS)

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

soak: setup
	HEADRACE_SOAK=1 $(BIN)/python -m pytest -m soak

# In a copy, for the kernel in place is to stay the usual one. Python itself leaks at its end; `make fuzz` looks for leaks.
sanitize: setup
	rm -rf build/sanitized && mkdir -p build/sanitized
	cp -r conf pipeline tests pyproject.toml setup.py README.md build/sanitized
	cd build/sanitized && CFLAGS="$(SANITIZERS)" LDFLAGS="$(SANITIZERS)" $(CURDIR)/$(BIN)/python setup.py --quiet build_ext --inplace --force
	cd build/sanitized && LD_PRELOAD=$$(gcc -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$$PWD HEADRACE_SOAK=1 \
	  $(CURDIR)/$(BIN)/python -m pytest -p no:cacheprovider tests/test_native*.py

fuzz: setup
	mkdir -p build/fuzz/corpus build/fuzz/seeds
	$(BIN)/python -m zipfile -e tests/native_corpus.zip build/fuzz/seeds
	clang $(SANITIZERS),fuzzer -Ipipeline/native tests/native_fuzz.c $(filter-out %/module.c %/buffers.c,$(wildcard pipeline/native/*.c)) -ljpeg -lm -o build/fuzz/fuzz
	cd build/fuzz && ./fuzz -max_total_time=$(FUZZ_S) -max_len=8192 corpus seeds

coverage: setup
	$(BIN)/python -m pytest --cov=pipeline --cov-report=term-missing:skip-covered

bench: setup
	$(BIN)/python bench.py -m bench.contender=torch,headrace preload=none

peers: setup
	$(BIN)/python -m pipeline.bench.peers.build

clean:
	rm -rf $(VENV) .peers build *.egg-info .mypy_cache .pytest_cache .ruff_cache .coverage
