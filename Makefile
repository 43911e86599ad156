# A thin layer over `cargo xtask`, which does the work and explains itself: cargo xtask --help

PREFIX ?= /usr/local

# A shell that was open while Rust was installed does not know its place yet.
CARGO ?= $(or $(shell command -v cargo),$(HOME)/.cargo/bin/cargo)
export PATH := $(PATH):$(HOME)/.cargo/bin
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)

# Compiling the automation itself is shown the first time, because it takes a while.
XTASK = $(CARGO) run $(if $(wildcard $(TARGET_DIR)/release/xtask),--quiet) --release --package xtask --

.PHONY: all setup demo test test-unit integration kernel base-image install lint clean bootstrap

all: bootstrap
	@$(XTASK) build

setup: bootstrap
	@$(XTASK) setup

demo: bootstrap
	@$(XTASK) demo

test: bootstrap
	@$(XTASK) test

test-unit: bootstrap
	@$(XTASK) test --unit

integration: bootstrap
	@$(XTASK) test --integration

kernel: bootstrap
	@$(XTASK) kernel

base-image: bootstrap
	@$(XTASK) base-image

install: bootstrap
	@$(XTASK) install --prefix "$(PREFIX)" $(if $(DESTDIR),--destdir "$(DESTDIR)")

lint: bootstrap
	@$(XTASK) lint

clean: bootstrap
	@$(XTASK) clean

# What the automation needs before it can be compiled: Rust, and a C compiler as its linker.
bootstrap:
	@command -v $(CARGO) >/dev/null || { echo 'error: cannot find cargo; install Rust from https://rustup.rs' >&2; exit 1; }
	@command -v cc >/dev/null || { \
		if [ "$$(id -u)" = 0 ]; then as_root=; \
		elif sudo -n true 2>/dev/null; then as_root='sudo -n'; \
		else echo 'error: cannot find a C compiler; run: sudo apt-get install gcc libc6-dev' >&2; exit 1; fi; \
		$$as_root apt-get -q update && \
		$$as_root apt-get -q install -y --no-install-recommends gcc libc6-dev; }
