# What people do here. `make` alone lists it.

CARGO ?= cargo

.DEFAULT_GOAL := help
.PHONY: help setup build test lint bench doc

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## check for what the build needs; install the programs that tests talk to
	@command -v g++ >/dev/null || { \
	    echo "g++ is missing: libzmq is built from its source (Debian: apt-get install g++)" >&2; \
	    exit 1; }
	@tests/peers/setup

build: ## build the hub for use: target/release/weir
	$(CARGO) build --release

test: setup ## run all tests: quick ones, those against other programs, models of the queue
	$(CARGO) test --workspace
	$(CARGO) test --workspace -- --ignored

lint: ## check formatting, lints and, with cargo-deny, the dependencies
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if $(CARGO) deny --version >/dev/null 2>&1; then \
	    echo "$(CARGO) deny check licenses bans sources"; $(CARGO) deny check licenses bans sources; \
	else \
	    echo "skipped: cargo deny check (cargo-deny is not installed: cargo install cargo-deny)"; \
	fi

bench: ## measure the hub from end to end
	$(CARGO) bench --bench end_to_end

doc: ## build the documentation: target/doc/weir/index.html
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps
