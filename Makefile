# make run    installs what is missing (cmake), builds, shows the demo: no GPU needed
# make test   installs what is missing, runs every test
# make real   two real vLLM servers on this CPU, agents and real clients through Thundergate (see tests/real)
# make bench  what a request and an event cost, beside nginx (see bench/REPORT.md; bench-all: everything that is measured)
# make reliability   what reloads, upgrades, dead backends and departures cost (see docs/reliability.md)
# make soak   SOAK_MINUTES (10) of mixed clients while engines are killed, files reloaded, processes replaced
# make fuzz   looks for inputs that break what reads bytes of strangers: SECONDS=600 for each target (see fuzz)
# make lint   format, clippy

CARGO ?= cargo
SOAK_MINUTES ?= 10

.PHONY: run build test bench bench-all reliability soak lint real cmake shellcheck

run: build
	target/release/thundergate demo

build: cmake
	$(CARGO) build --locked --release --target-dir target

test: cmake shellcheck
	$(CARGO) test --locked

bench: cmake
	ulimit -n 8192; $(CARGO) bench --locked --bench cost

# A stream takes four descriptors there, two of them in the benchmark.
bench-all: cmake
	ulimit -n 8192; $(CARGO) bench --locked --bench cost -- --all
	ulimit -n 8192; $(CARGO) bench --locked --bench cost -- --targets thundergate --only known,million
	ulimit -n 8192; $(CARGO) bench --locked --bench streams --bench state
	$(CARGO) bench --locked --bench upgrade
	$(CARGO) bench --locked --bench decision -- tables

reliability: cmake
	$(CARGO) bench --locked --bench upgrade --bench outage
	$(CARGO) bench --locked --bench streams -- --only aborts

soak: cmake
	$(CARGO) build --locked --release -p thundergate-lab
	ulimit -n 8192; $(CARGO) bench --locked --bench soak -- --minutes $(SOAK_MINUTES)

# Needs slowhttptest, nghttp2-client and curl, all from Debian.
.PHONY: conformance
conformance: build
	tests/tools/conformance.sh

# Needs the nightly toolchain and `cargo install cargo-fuzz`. There is no unsafe code here for a sanitizer to look at.
SECONDS ?= 600
.PHONY: fuzz
fuzz: cmake
	for target in envelope sse prometheus yaml snapshot; do \
		mkdir -p fuzz/target/found/$$target; \
		$(CARGO) +nightly fuzz run --sanitizer none $$target fuzz/target/found/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(SECONDS) -rss_limit_mb=2048 -timeout=10 || exit 1; \
	done

lint: cmake
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

real: build
	tests/real/run.sh

# Pingora's zlib is built with it.
cmake:
	@command -v cmake >/dev/null || tests/install.sh cmake

# For one test of the scripts in examples/, which is left out without it.
shellcheck:
	-@command -v shellcheck >/dev/null || tests/install.sh shellcheck
