# Two commands on a bare machine: `make run` and `make test`.

.PHONY: run test build check install-build-deps install-test-deps openapi
SHELL := /bin/bash

run: install-build-deps
	cargo run --bin requestrocket -- dev

build: install-build-deps
	cargo build --workspace --tests

# Format, lints, dependency rules.
check: install-build-deps
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	python3 tests/dependencies.py
	@without=; \
	if ! deploy/observability/install-promtool; then \
		echo "WARNING: there is no promtool: expressions and tests of alerts are SKIPPED" >&2; \
		without=--without-promtool; \
	fi; \
	python3 deploy/observability/check $$without

# All tests, also after one that failed. Those in network namespaces need root.
test: install-build-deps install-test-deps
	@failed=0; \
	if ! unshare --net true 2>/dev/null; then \
		echo "WARNING: no network namespace can be made here (root can): tests/chaos is SKIPPED" >&2; \
		export REQUESTROCKET_CHAOS=skip; \
	fi; \
	cargo test --workspace --no-fail-fast || failed=1; \
	.venv/bin/python -m pytest -q tests/clients || failed=1; \
	exit $$failed

install-build-deps:
	@deploy/install-build-deps

install-test-deps:
	@tests/install-test-deps

# Writes the committed OpenAPI description anew.
openapi: install-build-deps
	cargo run --quiet --bin requestrocket -- openapi > control/openapi.json
