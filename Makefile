# Targets of leitstand; `make` or `make help` lists them.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help dev ingest-test test check openapi golden system drill faults soak fuzz coverage mutants venv clean

PORT ?= 8788
# Where cargo builds, if that is not ./target.
ifdef CARGO_TARGET_DIR
export CARGO_TARGET_DIR := $(abspath $(CARGO_TARGET_DIR))
endif
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
export LEITSTAND_BIN ?= $(TARGET)/release/leitstand
VENV := .venv

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

dev: ## build and start on 127.0.0.1:8788 with token dev and ./data
	@command -v cargo >/dev/null || { echo "cargo is missing: install Rust, see https://rustup.rs" >&2; exit 1; }
	@test -e $(LEITSTAND_BIN) || echo "Building leitstand; the first time takes some minutes (about four on two processors)."
	@cargo build --release --locked
	@grep -Eqs '^(export )?(LEITSTAND|CHRONIK)_TOKEN' .env || export LEITSTAND_TOKEN=$${LEITSTAND_TOKEN:-dev}; \
		exec $(LEITSTAND_BIN) serve --host 127.0.0.1 --port $(PORT)

ingest-test: ## send one event to a running service
	@test -n "$${LEITSTAND_TOKEN:-}" || { echo "LEITSTAND_TOKEN not set" >&2; exit 1; }
	@curl --silent --show-error --fail-with-body -X POST "http://localhost:$(PORT)/ingest/aussen" \
		-H "Content-Type: application/json" -H "X-Auth: $$LEITSTAND_TOKEN" -d '{"event":"demo","status":"ok"}'
	@echo

test: tools ## everything that can be tested here (without root some checks are skipped and say so)
	cargo build --release --locked
	cargo test --locked --workspace --all-features
	$(MAKE) --no-print-directory golden system
	$(MAKE) --no-print-directory drill DRILL_ARGS="--seconds 3 --snapshot-every 1s --rto 60s"
	$(MAKE) --no-print-directory clients

.PHONY: tools
tools: ## install from Debian what the checks use (as root; else it says what is missing)
	@bash .ci/tools

golden: ## replay the recorded answers of the original against the release binary
	python3 tests/golden/check.py

system: venv ## crash, order, fault and side-by-side checks of the release binary
	$(VENV)/bin/python tests/system/run.py

DRILL_REPORT ?= $(TARGET)/drill
DRILL_ARGS ?= --seconds 8 --snapshot-every 2s

drill: ## total loss and recovery, measured: about 10 s, report in DRILL_REPORT (target/drill); see DRILL_ARGS
	@cargo build --release --locked --quiet
	@$(LEITSTAND_BIN) drill --report $(DRILL_REPORT) $(DRILL_ARGS)

faults: tools venv ## the same checks with their full figures, in about half an hour
	cargo build --release --locked
	ROUNDS=$${ROUNDS:-500} $(VENV)/bin/python tests/system/run.py --long

soak: venv ## ten minutes of even load: memory and descriptors must not grow (SOAK_SECONDS, SOAK_RATE)
	cargo build --release --locked
	$(VENV)/bin/python tests/system/run.py soak

# cargo-fuzz asks for a nightly compiler; the stable one does when it is told so.
FUZZ := RUSTC_BOOTSTRAP=1 cargo fuzz
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= json batch domain forwarded rate tail config request
FUZZ_DIR := tests/fuzz

fuzz: ## look for inputs that break a parser, FUZZ_SECONDS (60) for each target of FUZZ_TARGETS
	@cargo fuzz --version >/dev/null 2>&1 || cargo install --locked cargo-fuzz
	$(FUZZ) build --fuzz-dir $(FUZZ_DIR) --sanitizer none
	@for target in $(FUZZ_TARGETS); do \
		mkdir -p $(FUZZ_DIR)/found/$$target; \
		echo "fuzz: $$target, $(FUZZ_SECONDS) s"; \
		$(FUZZ) run --fuzz-dir $(FUZZ_DIR) --sanitizer none $$target \
			$(FUZZ_DIR)/found/$$target $(FUZZ_DIR)/corpus/$$target -- -dict=$(FUZZ_DIR)/dictionary.txt \
			-max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=512 -timeout=1 -max_len=4096 -print_final_stats=1 -verbosity=0; \
	done

coverage: venv ## line coverage of src/ by all tests; fails below COVERAGE_MIN (85) percent
	$(VENV)/bin/python tests/coverage.py

# MUTANTS narrows it: a regular expression for names as `cargo mutants --list` gives them. MUTANTS_FILES takes
# other files: MUTANTS_FILES='src/storage/snapshot/*.rs'.
mutants: ## break storage, X-Auth, limits and events line by line; about an hour; fails below MUTANTS_MIN (85) percent
	@cargo mutants --version >/dev/null 2>&1 || cargo install --locked cargo-mutants
	python3 tests/mutants/run.py

venv: $(VENV)/.ready
$(VENV)/.ready: tests/system/requirements.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r tests/system/requirements.txt
	@touch $@

check: tools venv ## format, lints, documentation, licences, drift of generated files
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-features --all-targets --quiet -- --deny warnings
	cargo clippy --locked --package leitstand --no-default-features --all-targets --quiet -- --deny warnings
	RUSTDOCFLAGS="--deny warnings --allow rustdoc::private_intra_doc_links" cargo doc --locked --workspace --all-features --no-deps --document-private-items --quiet
	python3 .ci/licences.py
	@cargo run --locked --quiet -- openapi | diff -u docs/openapi.yaml - \
		|| { echo "docs/openapi.yaml is stale: run 'make openapi' and commit it" >&2; exit 1; }
	@$(VENV)/bin/python .ci/openapi.py
	cargo fmt --check --manifest-path benches/limits/Cargo.toml
	@python3 benches/selftest.py
	@$(MAKE) --no-print-directory instructions-check
	@echo "check: ok"

# The release binary is the one that `make test` needs too.
.PHONY: instructions instructions-check
instructions-check: ## what an event costs in instructions, held against benches/instructions.json (valgrind)
	cargo build --release --locked --quiet
	python3 benches/instructions.py

instructions: ## count anew and write benches/instructions.json
	cargo build --release --locked
	python3 benches/instructions.py --write

openapi: ## write docs/openapi.yaml from the code
	cargo run --locked --quiet -- openapi > docs/openapi.yaml

clean: ## remove what was built (never data)
	cargo clean
	rm -rf $(VENV)

# The client libraries: clients/python and clients/shell. What a machine lacks is skipped and said.
.PHONY: clients clients-python clients-shell
PYTEST_ARGS ?= --numprocesses 4 --quiet

clients: ## types, lints and tests of the Python and the shell client
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target clients-python clients-shell

clients-python: $(VENV)/.clients
	cd clients/python && ../../$(VENV)/bin/mypy && ../../$(VENV)/bin/ruff check --quiet . && ../../$(VENV)/bin/ruff format --quiet --check .
	cd clients/python && ../../$(VENV)/bin/pytest $(PYTEST_ARGS)

clients-shell:
	@if command -v shellcheck >/dev/null; then shellcheck clients/shell/*.sh && echo "clients/shell shellcheck ... ok"; \
		else echo "clients/shell shellcheck ... SKIPPED: shellcheck is not installed"; fi
	@for tool in bats jq curl; do \
		command -v $$tool >/dev/null || { echo "clients/shell tests ... SKIPPED: $$tool is not installed"; exit 0; }; \
	done; bats clients/shell/tests

$(VENV)/.clients: clients/python/requirements-dev.txt $(VENV)/.ready
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The benchmark: docs/performance.md.
.PHONY: bench bench-report

bench: ## measure the service (BENCH_ROWS, BENCH_ROUNDS, BENCH_SECONDS, BASELINE, ORIGINAL); says first how long
	@python3 benches/run.py
	@python3 benches/report.py --print

bench-report: ## write the tables and plots of the last benchmark into docs/
	@python3 benches/report.py
