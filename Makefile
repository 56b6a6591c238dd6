# Two commands on a bare machine: `make run` and `make test`.

.PHONY: run test build check install-build-deps install-test-deps openapi
SHELL := /bin/bash

run: install-build-deps
	cargo run --quiet --bin requestrocket -- dev

build: install-build-deps
	cargo build --workspace --tests

# Format, lints, dependency rules.
check: install-build-deps
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	python3 tests/dependencies.py
	@deploy/observability/install-promtool
	python3 deploy/observability/check

test: install-build-deps install-test-deps
	cargo test --workspace
	.venv/bin/python -m pytest -q tests/clients

install-build-deps:
	@deploy/install-build-deps

install-test-deps:
	@tests/install-test-deps

# Writes the committed OpenAPI description anew.
openapi: install-build-deps
	cargo run --quiet --bin requestrocket -- openapi > control/openapi.json
