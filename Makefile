# Each target does all the set-up it needs; what is there already is skipped.
#   make run      set up, build, run pipelines/medquad.yaml (or the profile `sample` where MedQuAD cannot be had)
#   make test     set up, then format check, clippy and every test
#   make lint     set up, then format check and clippy, warnings as errors
#   make bench-engine  what the engine itself costs per stage, beside make and ninja
#   make bench-cpu     judge, generation and training on this CPU, beside transformers + PEFT (PEER: a Python that has both)
#   make faults   kills at KILLS (500) random moments, as many disks that fail, compared with undisturbed runs
#   make soak     results of 50 GB in sparse files, and a cache that must stay under a cap
#   make fuzz     a million damaged inputs for each reader (FUZZ_INPUTS)
#   make check-tracking  the W&B protocol against programs by others, where PyPI can be reached
#   make check-medquad   a real run tracked, killed, resumed, compared, served and looked at; minutes
#   make check-slurm     the same run as jobs of a Slurm cluster on loopback, where Slurm is installed; minutes
#                        (ARGS="--training": less of it; ARGS="--jobs 200": so many scripts, and what a job costs)
#   make check-exports   exports and server against transformers, PEFT, gguf and the openai client, where PyPI can be reached
#   make check-remote    the shared cache against a real S3 server on this machine, where PyPI can be reached
#   make build    set up, build in release, print the binary's path as the last line
#   make install  put `flow` on the PATH (PREFIX, default ~/.local)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.ONESHELL:
.SILENT:
.PHONY: run test binaries build install setup lint faults soak fuzz bench-engine bench-cpu check-tracking check-medquad check-exports check-remote check-slurm

export FLOW_HOME ?= $(HOME)/.cache/flow
export LIBTORCH_USE_PYTORCH := 1
export DUCKDB_LIB_DIR := $(FLOW_HOME)/duckdb
export DUCKDB_INCLUDE_DIR := $(FLOW_HOME)/duckdb
# Shared by all clones, so that a second clone builds in a minute.
export CARGO_TARGET_DIR ?= $(FLOW_HOME)/target
export PATH := $(FLOW_HOME)/venv/bin:$(PATH)
PREFIX ?= $(HOME)/.local
BIN := $(CARGO_TARGET_DIR)/release

setup:
	scripts/setup.sh

# `flow` itself is built without the feature `torch`: loading libtorch would cost every command a quarter of a second.
# Both builds share their dependencies, see Cargo.toml.
binaries: setup
	cargo build --release --locked --no-default-features --bin flow
	cargo build --release --locked --bin flow-lm

build: binaries
	echo $(BIN)/flow

run: binaries
	scripts/run-medquad.sh $(BIN)/flow

test: lint
	cargo test --locked

lint: setup
	scripts/same-features.sh
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings

faults: export KILLS ?= 500
faults: setup
	cargo test --locked --test it -- faults:: disk_and_clock:: --nocapture --test-threads=1

soak: export SOAK_MIB ?= 1024
soak: setup
	cargo test --locked --test it -- soak:: --nocapture --test-threads=1

fuzz: export FUZZ_INPUTS ?= 1000000
fuzz: setup
	cargo test --release --locked --lib -- survives_damage --nocapture --test-threads=1

bench-engine: build
	scripts/bench-engine.py $(BIN)/flow

PEER ?= python3
bench-cpu: build
	scripts/bench-cpu.py $(BIN)/flow $(PEER)

check-tracking: setup
	cargo build --locked --bin flow
	python3 tests/wandb_check.py $(CARGO_TARGET_DIR)/debug/flow

check-medquad: setup
	cargo build --locked --bins
	python3 tests/medquad_check.py $(CARGO_TARGET_DIR)/debug/flow $(ARGS)

check-slurm: setup
	cargo build --locked --bins
	python3 tests/slurm_check.py $(CARGO_TARGET_DIR)/debug/flow $(ARGS)

check-exports: setup
	cargo build --locked --bins
	python3 tests/exports_check.py $(CARGO_TARGET_DIR)/debug/flow

check-remote: setup
	cargo build --locked --no-default-features --bin flow
	python3 tests/remote_check.py $(CARGO_TARGET_DIR)/debug/flow

install: build
	install -D -t $(PREFIX)/bin $(BIN)/flow $(BIN)/flow-lm
	case ":$$PATH:" in *":$(PREFIX)/bin:"*) ;; *) echo "add $(PREFIX)/bin to your PATH" >&2 ;; esac
