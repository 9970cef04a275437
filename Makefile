# Rouse. `make demo` shows it, `make test` tests it; both install what they need (Debian 12, root).

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := build
MAKEFLAGS += --no-builtin-rules

CACHE := $(or $(ROUSE_CACHE),$(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rouse)
JOBS ?= $(shell nproc)
KEEP ?=
# Where `make kubectl-rouse` installs to.
PREFIX ?= $(HOME)/.local
# Arguments for pytest or the benchmarks, for example: make e2e ARGS='-k story -x', make bench ARGS=pull
ARGS ?=
# How long `make fuzz` runs each of its fuzzers, and which.
FUZZ_SECONDS ?= 600
FUZZERS ?= manifest safetensors engine_socket peer_messages bundle

# The compiler cache lies beside the others. Paths in it are relative to the tree, so that the image
# build, which sees the tree elsewhere, shares it.
export CCACHE_DIR ?= $(CACHE)/ccache
export CCACHE_BASEDIR := $(CURDIR)
export CCACHE_NOHASHDIR := 1
export CCACHE_COMPILERCHECK := content
export CCACHE_MAXSIZE ?= 3G
export PYTHONDONTWRITEBYTECODE := 1
# The compiler cache is keyed by the language of messages too.
export LANG := C.UTF-8
unexport LC_ALL LC_CTYPE LC_MESSAGES

.PHONY: help all build deps kubectl-rouse test demo bench e2e chaos fuzz lint format references pictures clean images images-arm64 sbom reproduce \
  test-release test-debug test-asan test-tsan build-release build-debug build-asan build-tsan test-gpu test-rdma test-keda test-plugin

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

all: build

deps: ## Install what building and testing need (does nothing when all is there)
	@e2e/install.sh > /dev/null

build: build-release ## Build operator, agent and connector into build/release

build-release build-debug build-asan build-tsan: build-%: deps
	@cmake --preset $* -DROUSE_CUDA_ROOT="$(CACHE)/cuda" -DROUSE_COMMIT=$$(git rev-parse --short HEAD 2> /dev/null || echo unknown) --log-level=WARNING
	@cmake --build --preset $* -j $(JOBS)

test-release: ## Unit tests of the release build
test-debug: ## Unit tests of a debug build
test-asan: ## Unit tests under AddressSanitizer and UndefinedBehaviorSanitizer
test-tsan: ## Unit tests under ThreadSanitizer
# Most of the time they wait, for processes and deadlines; with sanitizers they compute more.
test-release test-debug: TESTS_PER_PROCESSOR = 3
test-asan test-tsan: TESTS_PER_PROCESSOR = 2
test-release test-debug test-asan test-tsan: test-%: build-%
	@ctest --preset $* -j $$(($(TESTS_PER_PROCESSOR) * $(JOBS))) --no-tests=error

test-gpu: build-release ## Tests that need a GPU of this machine (not part of `make test`)
	@build/release/agent/rouse-gpu-test

# In a virtual machine without acceleration: some minutes, whatever the machine.
test-rdma: build-release ## Pulls over real RDMA verbs, in a virtual machine with soft-RoCE (not part of `make test`)
	@python=$$(e2e/install.sh qemu-system-x86 busybox-static ibverbs-providers) && cd e2e && \
	  "$$python" -m rouse_e2e.rdma_vm --seconds 900 $(CURDIR)/build/release/agent/rouse-rdma-test -d yes $(ARGS)

test-keda: build-release ## KEDA itself and an HPA scale a ModelService (not part of `make test`: KEDA is built first, ten minutes)
	@python=$$(e2e/install.sh) && cd e2e && "$$python" -m pytest -n0 tests/operator/real_keda.py $(ARGS)

test-plugin: build-release ## The plugin's tests inside the engine image's vLLM
	@python=$$(e2e/install.sh) && packages=$$(cd e2e && "$$python" -m rouse_e2e packages) && \
	  "$$python" connector/tests/run.py --packages "$$packages" --build build/release -n 2

# One worker more than processors: half of the tests mostly wait.
e2e: build-release ## End-to-end tests (ARGS="-k story" chooses, ARGS="-n0 -s" shows progress)
	@python=$$(e2e/install.sh) && cd e2e && "$$python" -m pytest -n 3 --dist loadscope --no-loadscope-reorder $(ARGS)

test: ## All tests: unit (release, asan, tsan), the plugin in a real vLLM, end to end on real clusters
	@$(MAKE) --no-print-directory test-release
	@$(MAKE) --no-print-directory test-asan
	@$(MAKE) --no-print-directory test-tsan
	@$(MAKE) --no-print-directory test-plugin
	@$(MAKE) --no-print-directory e2e

demo: build-release ## Show the main job on a real cluster (KEEP=1 leaves the cluster up)
	@python=$$(e2e/install.sh) && "$$python" e2e/demo.py $(if $(filter-out 0,$(KEEP)),--keep)

chaos: build-release ## Faults of every kind on a real cluster of two nodes (ARGS="--minutes 20 --seed N")
	@python=$$(e2e/install.sh) && "$$python" e2e/chaos.py $(ARGS)

# Only what users need: neither agent nor tests.
kubectl-rouse: deps ## Build the kubectl plugin, and put it into PREFIX/bin (default: ~/.local/bin)
	@cmake --preset release -DROUSE_CUDA_ROOT="$(CACHE)/cuda" -DROUSE_COMMIT=$$(git rev-parse --short HEAD 2> /dev/null || echo unknown) --log-level=WARNING
	@cmake --build --preset release -j $(JOBS) --target kubectl-rouse
	@cmake --install build/release --prefix "$(PREFIX)" --component kubectl --strip

images: deps ## Build the container images into the cache folder
	@python=$$(e2e/install.sh) && cd e2e && "$$python" -m rouse_e2e images

images-arm64: deps ## Build Rouse's images for arm64, and start them in QEMU (not part of `make test`)
	@python=$$(e2e/install.sh) && cd e2e && "$$python" -m rouse_e2e cross arm64

sbom: deps ## Write the images' bills of materials (SPDX) into build/sbom
	@python=$$(e2e/install.sh) && cd e2e && "$$python" -m rouse_e2e sbom

reproduce: deps ## Build both images twice from nothing, and compare (not part of `make test`)
	@python=$$(e2e/install.sh) && "$$python" e2e/reproduce.py $(ARGS)

bench: deps ## Run the benchmarks; figures go to docs/benchmarks
	@python=$$(e2e/install.sh) && ROUSE_CUDA_ROOT="$(CACHE)/cuda" "$$python" bench/run.py $(ARGS)

# New inputs stay in build/fuzz; an input that is handled wrongly goes to build/fuzz/found, and fails.
fuzz: deps ## Fuzz what is decoded of others' data, FUZZ_SECONDS each (default 600); needs clang
	@e2e/install.sh clang libclang-rt-14-dev > /dev/null
	@cmake --preset fuzz -DROUSE_CUDA_ROOT="$(CACHE)/cuda" --log-level=WARNING
	@cmake --build --preset fuzz -j $(JOBS)
	@mkdir -p build/fuzz/found
	@for fuzzer in $(FUZZERS); do \
	  echo "== $$fuzzer, $(FUZZ_SECONDS) s"; \
	  mkdir -p build/fuzz/corpus/$$fuzzer; \
	  build/fuzz/agent/tests/fuzz/rouse-fuzz-$$fuzzer -max_total_time=$(FUZZ_SECONDS) -timeout=10 \
	    -dict=agent/tests/fuzz/$$fuzzer.dict -rss_limit_mb=2048 -max_len=16384 -verbosity=0 -print_final_stats=1 \
	    -artifact_prefix=build/fuzz/found/$$fuzzer- \
	    build/fuzz/corpus/$$fuzzer agent/tests/fuzz/seeds/$$fuzzer; \
	done

lint: deps ## Check the format of C++ and Python
	@git ls-files '*.cpp' '*.h' '*.c' | xargs -r clang-format --dry-run -Werror
	@python=$$(e2e/install.sh) && "$$python" -m ruff check e2e connector bench && \
	  "$$python" -m ruff format --check e2e bench

references: deps ## Write what is made of code in docs/: the API reference and the metrics
	@python=$$(e2e/install.sh) && "$$python" e2e/references.py

pictures: build-release ## Draw docs/pictures anew, of a run of the demo's story and what Prometheus says of it
	@python=$$(e2e/install.sh librsvg2-bin python3-matplotlib) && "$$python" e2e/pictures.py

format: deps ## Format C++ and Python
	@git ls-files '*.cpp' '*.h' '*.c' | xargs -r clang-format -i
	@python=$$(e2e/install.sh) && "$$python" -m ruff format e2e bench

clean: ## Remove build/ (caches stay; they are in ~/.cache/rouse)
	@rm -rf build
