# make demo               sets everything up and classifies the photos in examples/photos
# make test               sets everything up and runs the tests (WORKERS=4: in four processes, not two)
# make lint               runs the linters
# make format             lets them mend what they can
# make bench              measures how fast everything is (BENCH="operators --quick": only that)
# make check-wheel        builds the wheel anew and looks into it
# make test-second-torch  runs the operators' tests under another torch
# make test-portable      runs them on the kernels for processors other than x86
# make test-sanitized     runs them on kernels with AddressSanitizer and UndefinedBehaviorSanitizer
# make test-cuda          runs the CUDA kernels' tests, and compute-sanitizer, on a GPU
# make clean              deletes what was built, but not the environment
#
# PYTHON, TORCH and VENV can be given on the command line:
#   make test PYTHON=python3.12 TORCH="torch==2.11.0 torchvision==0.26.0"
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
TORCH ?= torch==2.14.1 torchvision==0.29.1

BIN := $(VENV)/bin
NATIVE_SOURCES := $(shell find csrc -type f) CMakeLists.txt setup.py pyproject.toml
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: help setup demo test test-cuda test-second-torch test-portable test-sanitized check-wheel lint format bench clean
help:
	@sed -n '1,/^PYTHON/s/^# \{0,1\}//p' Makefile

# torch first: the build needs it installed (no build isolation).
$(VENV)/.torch:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BIN)/python -m pip install --quiet "setuptools>=77" wheel "pybind11>=2.13" ninja "cmake>=3.25"
	@touch $@

$(VENV)/.built: $(VENV)/.torch $(NATIVE_SOURCES)
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[train,report,test,lint]"
	@touch $@

setup: $(VENV)/.built

demo: setup
	$(BIN)/anchornet predict examples/photos --overlay demo_output
	@echo "Pictures of what the model looked at: demo_output/"

# First the library in which the tests run the CUDA kernels on the CPU. Each process has one thread:
# tests that are about more set their number.
test: setup
	$(BIN)/python python_tests/cuda_on_host/library.py
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

# On a GPU: the tests that need one, then compute-sanitizer's tools (TOOLS="memcheck": one of them).
# Fails, and says why, where there is no GPU.
test-cuda: setup
	PYTHONPATH=python_tests $(BIN)/python -m cuda_on_host.sanitize $(TOOLS)

# The library built here, unrebuilt, under another torch.
test-second-torch: setup
	$(BIN)/python python_tests/native/second_torch.py

# The CPU kernels as built for processors other than x86.
test-portable: setup
	$(BIN)/python python_tests/native/portable.py -- --numprocesses $(WORKERS)

# The CPU kernels as built with AddressSanitizer and UndefinedBehaviorSanitizer: some minutes.
test-sanitized: setup
	$(BIN)/python python_tests/native/sanitized.py -- --numprocesses $(WORKERS)

# A clean build of the wheel, installed into an empty folder. BUILD_NO_CUDA and the other switches of
# docs/install.md apply.
check-wheel: setup
	$(BIN)/python python_tests/native/check_wheel.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	find csrc python_tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	find csrc python_tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format -i

bench: setup
	$(BIN)/anchornet bench $(BENCH)

clean:
	rm -rf build dist demo_output *.egg-info anchornet_ext/*.so $(VENV)/.built
