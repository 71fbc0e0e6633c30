# Everything that is done with this repository. `make help` lists it.
SHELL := bash
.DEFAULT_GOAL := help
TARGET := $(or $(CARGO_TARGET_DIR),target)
TOOLS := $(TARGET)/tools
CARGO ?= cargo
# Programs and tests in one build: by themselves the programs would be built with other features of their libraries.
BUILD = $(CARGO) build --workspace --bins --tests --examples

.PHONY: help build release test test-rust test-doc test-interop test-devices bench-devices crash fmt verify-fmt fix-fmt clippy docs deny \
  verify-proto verify-generated fix-generated verify-units verify-fuzz fuzz ci demo up down bench-files bench-peers cluster cluster-down install

help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

build: ## Build everything (debug)
	$(CARGO) build --workspace --all-targets

release: ## Build the programs (release)
	$(CARGO) build --release -p central-server -p client-agent -p peer-node -p atrium -p atrium-e2e --bins

demo: release ## Show it all on this machine, in about a minute, with temporary state
	$(TARGET)/release/demo

up: release ## Start an office on loopback that stays (state in target/office)
	$(TARGET)/release/demo up

down: ## Stop that office
	@if [ -x $(TARGET)/release/demo ]; then $(TARGET)/release/demo down; fi

test: test-rust test-doc test-interop ## Run all tests

test-rust:
	$(BUILD)
	@if $(CARGO) nextest --version >/dev/null 2>&1; then \
	  echo "$(CARGO) nextest run --workspace"; $(CARGO) nextest run --workspace; \
	else $(CARGO) test --workspace --all-targets; fi

test-doc:
	$(CARGO) test --workspace --doc

test-interop: ## The Python client against a real server (sets up its own environment)
	$(BUILD)
	tests/interop/python/run.sh $(TARGET)/debug

crash: ## Kill the server at random instants while clients work: make crash ROUNDS=1000
	$(BUILD)
	$(TARGET)/debug/crash --rounds $(or $(ROUNDS),200)

bench-files: release ## Measure against nginx, Samba and rsync where installed (table, and JSON in target/bench)
	$(TARGET)/release/bench-files

test-devices: ## Printers, drives and disks judged by programs that are not ours (as root; installs them from Debian)
	$(BUILD)
	tests/devices/printers.sh $(TARGET)/debug/examples
	NBD_EXPORT=$(TARGET)/debug/examples/nbd_export tests/devices/discs.sh
	tests/devices/peer.sh $(TARGET)/debug

bench-devices: ## Measure printers beside CUPS and discs beside nbdkit (as root)
	$(CARGO) build --release -p atrium-device --examples
	tests/devices/printers_bench.sh $(TARGET)/release/examples
	NBD_EXPORT=$(TARGET)/release/examples/nbd_export tests/devices/discs.sh --bench

bench-peers: release ## Measure peers in a network lab, beside Syncthing and BitTorrent where installed (as root)
	$(TARGET)/release/bench-peers

cluster: release ## Start the compose cluster, move files across containers, by the server and among peers
	deploy/compose/cluster.sh up

cluster-down: ## Remove the compose cluster
	deploy/compose/cluster.sh down

fix-fmt: ## Format
	$(CARGO) fmt --all
verify-fmt:
	$(CARGO) fmt --all --check

clippy: ## Lints, warnings denied
	$(CARGO) clippy --workspace --all-targets -- -D warnings

docs: ## API documentation, warnings denied
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --document-private-items

deny: ## Licences, bans and sources of dependencies
	@if ! $(CARGO) deny --version >/dev/null 2>&1 && [ ! -x $(TOOLS)/bin/cargo-deny ]; then \
	  echo "building cargo-deny once"; CARGO_PROFILE_DEV_DEBUG=0 $(CARGO) install --locked -q --debug cargo-deny --version 0.20.2 --root $(TOOLS); fi
	$(CARGO) fetch -q --locked
	PATH="$$PATH:$$PWD/$(TOOLS)/bin" $(CARGO) deny --offline check bans licenses sources

verify-proto: ## Lint the contract and look for breaking changes against main
	@if [ ! -x $(TOOLS)/bin/buf ]; then python3 -m pip install -q --target $(TOOLS) buf-bin==1.75.0; fi
	$(TOOLS)/bin/buf lint proto
	@if git rev-parse -q --verify origin/main >/dev/null && git cat-file -e origin/main:proto/buf.yaml 2>/dev/null; then \
	  $(TOOLS)/bin/buf breaking proto --against '.git#branch=origin/main,subdir=proto'; fi

fix-generated: ## Write the generated documents anew
	$(BUILD)
	$(TARGET)/debug/atrium generate docs > docs/cli.md
	$(TARGET)/debug/generate-docs write

verify-generated: ## Are the generated documents current?
	$(BUILD)
	$(TARGET)/debug/atrium generate docs | diff -u docs/cli.md - || { echo "fix: make fix-generated"; exit 1; }
	$(TARGET)/debug/generate-docs check

verify-units: ## systemd units: syntax, and exposure at most 3.0
	deploy/systemd/verify.sh

verify-fuzz: ## The fuzz targets compile
	$(CARGO) check -q --manifest-path fuzz/Cargo.toml --target-dir $(TARGET)/fuzz

FUZZERS ?= $(basename $(notdir $(wildcard fuzz/targets/*.rs)))
# address finds wrong memory in unsafe code too, at half of the speed; its runtime comes with the compiler.
SANITIZER ?= none
fuzz: ## Run the fuzz targets one after the other: make fuzz SECONDS=60, of some: FUZZERS="upload code"
	@if ! rustup run nightly rustc --version >/dev/null 2>&1; then echo "needs a nightly compiler: rustup toolchain install nightly"; exit 1; fi
	@if ! command -v c++ >/dev/null; then echo "needs a C++ compiler: apt-get install g++"; exit 1; fi
	@if [ ! -x $(TOOLS)/bin/cargo-fuzz ]; then \
	  echo "building cargo-fuzz once"; $(CARGO) install --locked -q cargo-fuzz --version 0.13.2 --root $(TOOLS); fi
	@set -e; for target in $(FUZZERS); do \
	  echo "== $$target"; mkdir -p $(TARGET)/fuzz/corpus/$$target $(TARGET)/fuzz/found/$$target; \
	  PATH="$$PATH:$(abspath $(TOOLS))/bin" ATRIUM_SEEDS=$(abspath $(TARGET))/fuzz/corpus/$$target nice rustup run nightly \
	    cargo fuzz run --sanitizer $(SANITIZER) --target-dir $(TARGET)/fuzz $$target $(TARGET)/fuzz/corpus/$$target -- \
	    -max_total_time=$(or $(SECONDS),60) -timeout=10 -report_slow_units=1 -artifact_prefix=$(TARGET)/fuzz/found/$$target/ \
	    -rss_limit_mb=256 -print_final_stats=1; done

ci: verify-fmt clippy docs deny verify-proto verify-generated verify-units test ## Exactly what a change must pass, without containers

install: release ## Install programs, units and man pages (as root; DESTDIR is honoured)
	install -D -m 0755 -t $(DESTDIR)/usr/bin $(TARGET)/release/central-server $(TARGET)/release/client-agent $(TARGET)/release/peer-node $(TARGET)/release/atrium
	install -D -m 0644 -t $(DESTDIR)/usr/lib/systemd/system deploy/systemd/*.service
	install -D -m 0644 -t $(DESTDIR)/usr/lib/systemd/user deploy/systemd/user/*.service
	install -D -m 0644 deploy/sysusers.d/atrium.conf $(DESTDIR)/usr/lib/sysusers.d/atrium.conf
	install -D -m 0644 deploy/tmpfiles.d/atrium.conf $(DESTDIR)/usr/lib/tmpfiles.d/atrium.conf
	for f in deploy/config/*.toml; do [ -e $(DESTDIR)/etc/atrium/$$(basename $$f) ] || install -D -m 0644 $$f $(DESTDIR)/etc/atrium/$$(basename $$f); done
	install -d $(DESTDIR)/usr/share/man/man1 && $(TARGET)/release/atrium generate man $(DESTDIR)/usr/share/man/man1
