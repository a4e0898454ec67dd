# The two set-up commands are `make run` and `make test`; everything else is convenience.
#
#   make run [ARGS="…"]     build, and start one peer in the foreground
#   make test               build, and pass every test
#   make demo               a bootstrap node and five peers, shown step by step
#   make bench [SUITE=…] [QUICK=1] [ONLY=…] [STEADY=10m]
#   make check              formatting, lints, licences
#   make testnet-up testnet-story testnet-down    the same story in containers

SHELL := /bin/bash
# Builds live outside the tree, so that a fresh clone starts warm.
CACHE ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/blackhole
export CARGO_TARGET_DIR ?= $(CACHE)/target
BIN := $(CARGO_TARGET_DIR)/debug
export BH_BIN_DIR := $(BIN)
CARGO_FLAGS ?= --locked
SUITE ?= calls

.PHONY: run test demo bench check build setup fixtures install testnet-up testnet-story testnet-down help

run: build
	@exec $(BIN)/bh-peer $(ARGS)

test: setup fixtures
	cargo build $(CARGO_FLAGS) --workspace --all-targets
	@$(MAKE) --no-print-directory names
	cargo test $(CARGO_FLAGS) --workspace

demo: build fixtures
	@$(BIN)/demo

bench: build fixtures
	@SUITE=$(SUITE) QUICK=$(QUICK) ONLY=$(ONLY) $(if $(STEADY),STEADY=$(STEADY)) $(BIN)/bh-bench

check: setup
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then cargo deny check bans licenses sources; \
	else echo "cargo-deny is not installed: licences and bans were not checked (cargo install cargo-deny)"; fi

build: setup
	cargo build $(CARGO_FLAGS) --workspace --bins
	@$(MAKE) --no-print-directory names

# One executable, four names; and each example plugin in a directory that can be loaded.
.PHONY: names
names:
	@for name in blackhole blackhole-node bh-bootstrap; do ln -sfn bh-peer $(BIN)/$$name; done
	@for plugin in echo counter kv misfit; do \
	  install -d $(BIN)/plugins/$$plugin && \
	  install -m 644 plugins/$$plugin/plugin.yaml $(BIN)/plugins/$$plugin/ && \
	  ln -f $(BIN)/$$plugin $(BIN)/plugins/$$plugin/$$plugin; done
	@install -d $(BIN)/plugins/wasm-echo && \
	  install -m 644 plugins/wasm-echo/plugin.yaml plugins/wasm-echo/echo.pb plugins/wasm-echo/echo.wasm $(BIN)/plugins/wasm-echo/

# What apt must bring: a C++ compiler and libclang, for the embedded store.
setup:
	@scripts/setup.sh

# Foreign plugins and clients: unmodified gRPC programs in Python and Go.
fixtures:
	@tests/fixtures/prepare.sh

PREFIX ?= /usr/local
install: build
	install -D $(BIN)/bh-peer $(DESTDIR)$(PREFIX)/bin/bh-peer
	@for name in blackhole blackhole-node bh-bootstrap; do ln -sfn bh-peer $(DESTDIR)$(PREFIX)/bin/$$name; done

testnet-up: build fixtures
	testnet/docker/up.sh
testnet-story:
	testnet/docker/story.sh
testnet-down:
	testnet/docker/down.sh

help:
	@sed -n 's/^#   //p' Makefile
