# Everything that is done with this tree, by name. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.ONESHELL:
# Prerequisites stand in the order in which they are needed.
.NOTPARALLEL:

# Where rustup puts cargo, for shells that were not told, such as sudo's.
export PATH := $(PATH):$(HOME)/.cargo/bin
CARGO ?= cargo
# Seconds that `make fuzz` gives each target.
FUZZ_SECONDS ?= 60
# The demo's disk and how much of it is files.
DEMO_SIZE ?= 3G
DEMO_FILL ?= 2252M
# What the Debian package is made of: release, or dev, which is built sooner and runs on systems no older than this one.
PROFILE ?= release
BUILT := target/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
# As the tests are built, so that nothing is built twice: an example takes the same dependencies as they do.
BUILD_WITH := $(if $(filter dev,$(PROFILE)),--workspace --bins --examples,-p snapferry -p snapferry-sim)
# Packages of release builds alone are what a release consists of.
DEBS := target/$(if $(filter release,$(PROFILE)),dist,deb-$(PROFILE))
# What it is packed by. This version warns of the dev profile; later ones may refuse it.
CARGO_DEB := 3.8.0
# Debian's or Ubuntu's name for the system that `make test-deb` installs on, by default this one's; MIRROR for where its packages are,
# by default where this system's own come from.
SUITE ?=
# Passed to benches/compare.py: --quick, --rows, --rounds, --server, see --help.
BENCH ?=

SCRIPTS := .ci/run $(wildcard scripts/*.sh) $(wildcard scripts/acceptance/*.sh) $(wildcard packaging/debian/*)

.PHONY: help
help: ## This list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

.PHONY: build
build: ## The release binary: target/release/snapferry
	scripts/install-system.sh
	$(CARGO) build --release --locked -p snapferry

.PHONY: install
install: ## The release binary into cargo's bin folder
	scripts/install-system.sh
	$(CARGO) install --path . --locked

.PHONY: cargo-deb
cargo-deb:
	if ! $(CARGO) deb --version >/dev/null 2>&1; then
		echo "Installing with cargo: cargo-deb" >&2
		$(CARGO) install --locked cargo-deb --version $(CARGO_DEB)
	fi

.PHONY: deb
deb: cargo-deb ## The Debian packages: target/dist/snapferry*.deb (PROFILE=dev: target/deb-dev/)
	scripts/install-system.sh --deb
	$(CARGO) build --profile $(PROFILE) --locked $(BUILD_WITH)
	if [[ $(PROFILE) == release ]]; then scripts/check-glibc.sh $(BUILT)/snapferry 2.34; fi
	scripts/licences.py --texts target/third-party-licences.txt
	mkdir -p $(DEBS) target/completions
	rm -rf $(DEBS)/*.deb target/man
	$(BUILT)/snapferry man --to target/man
	$(BUILT)/snapferry completions bash >target/completions/snapferry.bash
	$(BUILT)/snapferry completions zsh >target/completions/_snapferry
	$(BUILT)/snapferry completions fish >target/completions/snapferry.fish
	$(CARGO) deb --no-build --profile $(PROFILE) --output $(DEBS)/
	$(CARGO) deb --no-build --profile $(PROFILE) --output $(DEBS)/ -p snapferry-sim
	# Where dpkg-shlibdeps can't be run, cargo-deb only warns, and leaves out what the program needs.
	if ! dpkg-deb --field $(DEBS)/snapferry_*.deb Depends | grep -q libc6; then
		echo "the package does not say that it depends on libc6" >&2
		exit 1
	fi

.PHONY: test-deb
test-deb: deb ## Installs and removes that package in a minimal system of its own (as root, with debootstrap)
	scripts/test-deb.sh $(DEBS)/snapferry_*.deb $(SUITE)

.PHONY: dist
dist: deb ## What a release consists of: archive, Debian package, SHA256SUMS, in target/dist
	scripts/dist.sh

.PHONY: demo
demo: ## A real disk into the embedded store and back, beside qemu-img
	scripts/demo.sh $(DEMO_SIZE) $(DEMO_FILL)

.PHONY: recording
recording: build ## Records a replication in a terminal: docs/terminal.svg (needs tmux)
	$(CARGO) build --release --locked -p snapferry-sim
	scripts/install-system.sh --demo
	scripts/record.py "$$(scripts/make-disk.sh target/demo/disk.img $(DEMO_SIZE) --fill $(DEMO_FILL) | tail -n 1)"

.PHONY: test-tools
test-tools: ## What the test suite needs, installed
	scripts/install-system.sh --test
	scripts/ibm-sdk.sh
	mkdir -p target
	rm -f target/skipped.txt

# Tests that can't run on this machine say so, and are listed once more at the end.
.PHONY: test
test: export SNAPFERRY_SKIPPED := $(CURDIR)/target/skipped.txt
test: test-tools check-terraform ## The whole test suite; installs what it needs
	if $(CARGO) nextest --version >/dev/null 2>&1; then
		# Most tests wait for servers and for leases longer than they compute.
		$(CARGO) nextest run --locked --workspace --test-threads $$((2 * $$(nproc)))
		scripts/slowest-tests.py
	else
		$(CARGO) test --locked --workspace --lib --bins --tests --examples
	fi
	$(CARGO) test --locked --workspace --doc
	SNAPFERRY=$(CURDIR)/target/debug/snapferry $(CARGO) test --locked --manifest-path tests/qcow2-rs/Cargo.toml --target-dir target/qcow2-rs --tests
	if [[ -s target/skipped.txt ]]; then
		printf 'Skipped on this machine:\n'
		LC_ALL=C sort -u target/skipped.txt
	fi

# How many jobs `make soak` has, and by which seed things go wrong.
SOAK_JOBS ?= 200
SOAK_SEED ?= 7

.PHONY: soak
soak: ## Many jobs on four workers, with faults and kills by chance (minutes); then every takeover with the real lease
	scripts/install-system.sh --test
	export SNAPFERRY_SOAK_JOBS=$(SOAK_JOBS) SNAPFERRY_SOAK_SEED=$(SOAK_SEED) SNAPFERRY_TEST_LEASE=120s
	$(CARGO) test --locked -p snapferry --test it -- --nocapture fleet::handover::a_worker_is_killed
	unset SNAPFERRY_TEST_LEASE
	$(CARGO) test --locked -p snapferry --test it -- --nocapture fleet::soak
	SNAPFERRY_SCALE_JOBS=1000 $(CARGO) test --locked -p snapferry --test it -- --nocapture fleet::scale

.PHONY: snapshots
snapshots: ## Write the texts anew that tests/it/command_line/snapshots holds; look at the difference before you commit it
	INSTA_UPDATE=always $(CARGO) nextest run --locked --workspace -E 'test(command_line::snapshots::)' || true
	INSTA_UPDATE=no $(CARGO) nextest run --locked --workspace -E 'test(command_line::snapshots::)'

.PHONY: reference
reference: ## Write docs/commands anew: the reference of commands, from the program; look at the difference before you commit it
	$(CARGO) build --locked --workspace --bins
	target/debug/snapferry man --markdown --to docs/commands

.PHONY: book
book: ## The documents as a site with search: target/book (needs mdBook: cargo install --locked mdbook --version 0.5.4)
	mdbook build
	scripts/check-book.py target/book

.PHONY: lint
lint: check-units check-packaging check-monitoring ## Format, clippy with and without features, documentation, shellcheck, licences, unused dependencies, systemd units, packages, alerts
	$(CARGO) fmt --check
	$(CARGO) clippy --locked --workspace --all-targets --all-features -- -D warnings
	$(CARGO) clippy --locked -p snapferry -p snapferry-engine --lib --bins --no-default-features -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --locked --workspace --no-deps --document-private-items --all-features
	for package in fuzz tests/qcow2-rs; do $(CARGO) fmt --check --manifest-path $$package/Cargo.toml; done
	if command -v shellcheck >/dev/null; then
		shellcheck --external-sources $(SCRIPTS)
	elif [[ $${CI:-} == true ]]; then
		echo "shellcheck is missing" >&2
		exit 1
	else
		echo "SKIPPED: shellcheck is not installed" >&2
	fi
	if command -v python3 >/dev/null; then
		scripts/check-english.py
		benches/compare.py --help >/dev/null
		benches/chart.py --check
		scripts/architecture.py --check
		scripts/licences.py --check
	fi
	if $(CARGO) deny --version >/dev/null 2>&1; then
		$(CARGO) deny --locked --all-features check licenses bans sources
	else
		echo "SKIPPED: cargo-deny is not installed" >&2
	fi
	if $(CARGO) machete --version >/dev/null 2>&1; then
		$(CARGO) machete
	else
		echo "SKIPPED: cargo-machete is not installed" >&2
	fi

.PHONY: check-units
check-units: ## The systemd units, by systemd's own judgement
	scripts/check-units.sh

.PHONY: check-packaging
check-packaging: ## What packages are made of: files, maintainer scripts, the example of a configuration
	scripts/check-packaging.py

.PHONY: check-monitoring
check-monitoring: ## The alerts and the dashboard, by Prometheus' own promtool
	scripts/check-monitoring.py

.PHONY: check-terraform
check-terraform: ## The Terraform files: arguments, references, form; by Terraform itself too, where there is one
	scripts/terraform-venv.sh
	target/terraform/bin/python tests/terraform/check.py
	target/terraform/bin/python scripts/check-terraform.py

.PHONY: terraform-readmes
terraform-readmes: ## Write the tables of inputs and outputs into the READMEs of the Terraform folders
	scripts/terraform-venv.sh
	target/terraform/bin/python scripts/terraform-readme.py

.PHONY: check-terraform-provider
check-terraform-provider: ## The Terraform files by the real provider, tflint and terraform-docs (needs Terraform's registry)
	scripts/terraform-venv.sh
	scripts/check-terraform-provider.sh

.PHONY: bench
bench: ## snapferry beside qemu-img on a 10 GiB disk, into benches/README.md (as root, about an hour; BENCH=--quick for minutes)
	scripts/install-system.sh --bench
	$(CARGO) build --release --locked --workspace --bins --examples
	benches/compare.py $(BENCH)
	benches/chart.py

.PHONY: bench-parts
bench-parts: ## Criterion benchmarks of the parts
	scripts/install-system.sh
	$(CARGO) bench --locked -p snapferry

.PHONY: fuzz
fuzz: ## Every fuzz target for FUZZ_SECONDS (60)
	scripts/fuzz.sh $(FUZZ_SECONDS)

.PHONY: clean
clean: ## Remove everything that was built, the made disks included
	$(CARGO) clean
	rm -rf fuzz/target benches/__pycache__
