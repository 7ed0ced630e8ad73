# What developers and CI call. `./make` is the same for a machine without make.
#
# Each recipe prints the commands it runs. CARGO_TARGET_DIR is respected.

TARGET := $(if $(CARGO_TARGET_DIR),$(CARGO_TARGET_DIR),target)
CONFIG ?= config.toml

# Where rustup puts cargo, for shells that have not read its profile.
export PATH := $(PATH):$(HOME)/.cargo/bin

# One cargo at a time, and in the order written, even under -j.
.NOTPARALLEL:
.PHONY: help run test lint loom miri tsan fuzz bench interop setup

help: ## this list
	@echo 'Targets (make TARGET, or ./make TARGET where make is not installed yet):'
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-8s  %s\n", $$1, $$2 }' Makefile

run: ## build the gateway and start it with config.toml (CONFIG=file for another)
	@scripts/setup run
	cargo build --release --locked --bin portway
	exec $(TARGET)/release/portway run -c $(CONFIG)

test: lint ## everything that must hold before a commit; what CI runs
	cargo test --locked --features qlog,deadlock --all-targets
	cargo test --locked --features qlog,deadlock --doc
	cargo test --locked --no-default-features --lib --test sim
	@scripts/loom
	@scripts/licences
	@echo 'make test: all passed'

lint: setup ## formatting, clippy and rustdoc; a warning is an error
	cargo fmt --check
	cargo fmt --check --manifest-path tests/loom/Cargo.toml
	cargo fmt --check --manifest-path fuzz/Cargo.toml
	cargo fmt --check --manifest-path tests/moq-oracle/Cargo.toml
	cargo clippy --locked --all-targets --features qlog,deadlock -- -D warnings
	cargo clippy --locked --no-default-features --lib -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --features qlog,deadlock

loom: ## the models of the mailbox lane and of buffers, in all interleavings (LOOM_MAX_PREEMPTIONS, default 3)
	@scripts/loom

miri: ## optional: the memory library under Miri, which finds undefined behaviour; needs a nightly toolchain
	@scripts/nightly miri

tsan: ## optional: the memory library under ThreadSanitizer, which finds data races; needs a nightly toolchain
	@scripts/nightly tsan

fuzz: ## optional: every parser under libFuzzer, 30 s each; `make test` replays the seeds
	@scripts/fuzz

bench: ## our measurements beside our peers'; what they were elsewhere is in benches/RESULTS.md
	@scripts/setup run
	cd benches/peers && cargo build --release --locked
	cd benches/peers && target/release/mailbox pairs && target/release/fairness
	benches/echo.sh 10
	@echo 'Compare with benches/RESULTS.md, which names its machine, command and commit.'

interop: setup ## the gateway against programs in other languages, also those that must be built first
	@cargo test -q --locked --features qlog,deadlock --test it interop_ -- --list | grep -q ': test$$' || { echo 'no interop_ test in tests/it'; exit 1; }
	cargo test --locked --features qlog,deadlock --test it interop_
	@scripts/moq-peers
	@rm -f $(TARGET)/moq-interop.tsv
	MOQ_TABLE=$(abspath $(TARGET))/moq-interop.tsv cargo test --locked --features qlog,deadlock --test it moq_interop -- --include-ignored --test-threads 2
	@scripts/moq-table $(TARGET)/moq-interop.tsv
	@scripts/moq-oracle

setup: ## install what tests need and this machine lacks (Debian)
	@scripts/setup test
