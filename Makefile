# The README's two commands, `make demo` and `make test`, and what a developer needs beside them. All of it happens in .venv.
PYTHON ?= python3
VENV := .venv/bin/python
PIP_VERBOSITY ?= --quiet
PIP := $(VENV) -m pip $(PIP_VERBOSITY) --disable-pip-version-check
FUZZ_SECONDS ?= 60
SANITIZED = build/sanitize/venv/bin/python
ASAN = LD_PRELOAD="$$(cc -print-file-name=libasan.so) $$(cc -print-file-name=libubsan.so)" \
       ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 PYTHONMALLOC=malloc
SOURCES := pyproject.toml CMakeLists.txt $(wildcard natcore/*.h natcore/*.pxd natcore/*/*.pyx natcore/*/*.pxd)
PACKAGE := $(shell find python/natcore -name '*.py')
# The core's tests: no interfaces, no files, no other programs.
QUICK := tests/api/test_config.py tests/api/test_dtypes.py tests/api/test_gateway.py tests/base/test_chacha20.py \
         tests/base/test_checksum.py tests/base/test_flow_hash.py tests/base/test_hash_table.py tests/entries/test_table.py \
         tests/log/test_events.py tests/log/test_flow_table.py tests/log/test_journal.py tests/nat/test_fragment_path.py \
         tests/nat/test_fragmentation.py tests/nat/test_fuzz_corpus.py tests/nat/test_fuzz_frames.py tests/nat/test_hairpin.py tests/nat/test_icmp_replies.py \
         tests/nat/test_pipeline.py tests/nat/test_worked_example.py tests/oracle/test_model.py tests/oracle/test_properties.py \
         tests/packet/test_checksum_offload.py tests/packet/test_verdict.py tests/testing/test_bulk.py \
         tests/state/test_save_restore.py \
         tests/tables/test_entries.py tests/tables/test_fragments.py tests/tables/test_mappings.py tests/tables/test_ports.py \
         tests/tables/test_sessions.py tests/tables/test_tcp_state.py tests/workers/test_invariants.py \
         tests/workers/test_locks.py
COVERED := tests/api tests/base tests/log tests/nat tests/packet tests/tables tests/workers tests/oracle tests/state tests/conformance
COVERAGE_OPTIONS ?=
STUBBED := $(subst /,.,$(patsubst python/%.pyi,%,$(wildcard python/natcore/*/*.pyi)))     # the compiled modules
BENCHMARK_OPTIONS ?=
BENCHMARK_TABLE := --benchmark-json=build/bench.json --benchmark-columns=median,min,iqr,rounds --benchmark-sort=fullname
GATE_OPTIONS ?=
INSTRUCTIONS_OPTIONS ?=
WIRE_OPTIONS ?= --json build/wire.json
SOAK_OPTIONS ?= --seeds 10000 --jobs 2 --least 1000 --resume build/soak.json
RESTORED_OPTIONS ?= --seeds 10000 --jobs 2 --resume build/restored.json
TRUTH_OPTIONS ?= --lives 1000 --questions 1000
# Four processes on two processors: many tests wait for networks and programs. A process without a test left takes some of another.
TEST_OPTIONS ?= -n 4 --dist worksteal
SEARCHED := tests/api/test_embedding.py tests/capture/test_reader.py tests/oracle/test_properties.py tests/service/test_configuration_file.py
KILLS ?= 200
RACES_SECONDS ?= 30
# The interpreter is not instrumented: what it reads and writes itself is not looked at, its locks are.
TSAN := "ignore_noninstrumented_modules=1 history_size=4"

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_ROOT_USER_ACTION := ignore
# Bytecode is kept whatever the caller's environment says: the tests start some hundred interpreters.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test search workers lint docs coverage debug format soak restored mutants truth crash bench gate instructions worst wire sanitize sanitize-frames \
        sanitize-lives sanitize-tests races fuzz portable wheel clean
help:
	@echo "make demo      real programs through a gateway, then their session log (as root; else a replayed capture)"
	@echo "make test      the whole test suite (as root also with namespaces and real clients)"
	@echo "make search    random lives, and any argument, file or capture, with 20 times as many examples as in \`make test\`"
	@echo "make lint      ruff, mypy, stubtest, cython-lint"
	@echo "make docs      the documentation's site, into build/site; a warning is an error"
	@echo "make coverage  which lines of the core its tests run"
	@echo "make debug     a build with invariants and symbols, for gdb"
	@echo "make format    what ruff can put right itself"
	@echo "make soak      10,000 random lives against the oracle, the NAT in plain Python; it goes on where it was stopped"
	@echo "make restored  10,000 random lives in two copies, of which one is saved and restored again and again: both must be the same"
	@echo "make mutants   breaks each requirement on purpose, and wants its conformance cases to fail"
	@echo "make truth     1,000 random lives of gateways and their logs: no answer of \`who\` may be wrong"
	@echo "make crash     a gateway that logs is killed 200 times: every packet is in a row or in a declared gap"
	@echo "make bench     benchmarks; make gate: the ratio to the memory's limit"
	@echo "make instructions  instructions a packet, counted by valgrind, against the recorded figures"
	@echo "make worst     the longest that one packet of each kind takes, at a million sessions"
	@echo "make wire      the plane on the wire beside the kernel's NAT and a null forwarder (as root)"
	@echo "make workers   the core's tests with two workers, each frame given to one of them in turn"
	@echo "make sanitize  a million random frames under the address and undefined-behaviour sanitizers"
	@echo "make races     every public call from several threads under traffic, under the thread sanitizer"
	@echo "make fuzz      libFuzzer over translate for FUZZ_SECONDS, with sanitizers and invariants; its finds join the corpus"
	@echo "make portable  the core's tests on a build without processor intrinsics"
	@echo "make wheel     source distribution and wheel, and the wheel used in an empty environment"
	@echo "make clean     remove .venv, build and caches"

demo: .venv/built
	.venv/bin/natcore demo
	.venv/bin/natcore demo --sls

test: .venv/built .venv/tested-with
	$(VENV) -m pytest $(TEST_OPTIONS)

search: .venv/built .venv/tested-with
	NATCORE_TEST_SEARCH=20 $(VENV) -m pytest -q --timeout 3600 $(SEARCHED)

workers: .venv/built .venv/tested-with
	NATCORE_TEST_WORKERS=2 $(VENV) -m pytest -q $(QUICK) tests/conformance

lint: .venv/built .venv/linted-with .venv/tested-with
	$(VENV) -m ruff check .
	$(VENV) -m ruff format --check .
	$(VENV) -m mypy
	$(VENV) -m mypy --config-file .ci/mypy-tools.ini benchmarks tests/runs tests/support
	MYPYPATH=python $(VENV) -m mypy.stubtest $(STUBBED) --mypy-config-file pyproject.toml --allowlist .ci/stubs-allowed --ignore-unused-allowlist
	.venv/bin/cython-lint natcore benchmarks tests

coverage: build/coverage/built .venv/tested-with
	find build/coverage/cmake -name '*.gcda' -delete
	build/coverage/venv/bin/python -m pytest -q $(COVERED)
	.ci/coverage build/coverage/cmake $(COVERAGE_OPTIONS)

debug: build/debug/built
	@echo "gdb -x .ci/gdb.py --args build/debug/venv/bin/python PROGRAM"

docs: .venv/built .venv/documented-with
	$(VENV) docs/diagrams/draw.py --check
	$(VENV) docs/reference/tables.py --check
	NO_MKDOCS_2_WARNING=1 $(VENV) -m mkdocs build --strict --quiet

bench: .venv/built .venv/tested-with
	@mkdir -p build
	$(VENV) -m pytest benchmarks $(BENCHMARK_TABLE) $(BENCHMARK_OPTIONS)

format: .venv/linted-with
	$(VENV) -m ruff check --fix .
	$(VENV) -m ruff format .

soak: .venv/built .venv/tested-with
	$(VENV) tests/runs/soak.py $(SOAK_OPTIONS)

restored: .venv/built .venv/tested-with
	$(VENV) tests/runs/soak.py --restored $(RESTORED_OPTIONS)

mutants: .venv/built .venv/tested-with
	$(VENV) tests/runs/mutants.py

truth: .venv/built .venv/tested-with
	$(VENV) tests/runs/truth.py $(TRUTH_OPTIONS)

crash: .venv/built .venv/tested-with
	$(VENV) tests/runs/crash.py --kills $(KILLS)

gate: .venv/built .venv/tested-with
	$(VENV) benchmarks/gate.py $(GATE_OPTIONS)

instructions: .venv/built .venv/tested-with
	$(VENV) benchmarks/instructions.py $(INSTRUCTIONS_OPTIONS)

worst: .venv/built .venv/tested-with
	$(VENV) benchmarks/worst.py $(WORST_OPTIONS)

wire: .venv/built .venv/tested-with
	@mkdir -p build
	$(VENV) benchmarks/wire/run.py $(WIRE_OPTIONS)

sanitize: sanitize-frames sanitize-lives sanitize-tests

sanitize-frames: build/sanitize/built .venv/tested-with
	$(ASAN) $(SANITIZED) tests/runs/fuzz_frames.py --frames 1000000

sanitize-lives: build/sanitize/built .venv/tested-with
	$(ASAN) $(SANITIZED) tests/runs/soak.py --seeds 10

sanitize-tests: build/sanitize/built .venv/tested-with
	$(ASAN) $(SANITIZED) -m pytest -s -q $(filter-out %_properties.py,$(QUICK)) tests/capture/test_what_if.py      # the soak is these

races: build/races/built .venv/tested-with
	LD_PRELOAD="$$(cc -print-file-name=libtsan.so)" PYTHONMALLOC=malloc TSAN_OPTIONS=$(TSAN) \
	setarch -R build/races/venv/bin/python tests/runs/races.py --seconds $(RACES_SECONDS)

fuzz: .venv/built
	@missing=$$(.ci/needs fuzz "$(PYTHON)"); if [ -n "$$missing" ]; then echo "Missing here: apt-get install $$missing" >&2; exit 1; fi
	.ci/fuzz $(FUZZ_SECONDS)

portable: build/portable/built .venv/tested-with
	build/portable/venv/bin/python -m pytest -q $(QUICK)

wheel: .venv/built
	PYTHON="$(PYTHON)" .ci/wheel

clean:
	rm -rf .venv build dist .pytest_cache .hypothesis .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is older than what it was made from: then it is made again.
.venv/made:
	@missing=$$(.ci/needs build "$(PYTHON)"); if [ -n "$$missing" ]; then \
	    echo "Missing here (CPython 3.11 or newer, a C compiler and headers): apt-get install $$missing" >&2; exit 1; fi
	"$(PYTHON)" -m venv .venv
	$(PIP) install --upgrade "pip>=25.1"
	@touch $@

.venv/builds-with: pyproject.toml | .venv/made
	$(PIP) install --group build
	@touch $@

.venv/built: $(SOURCES) | .venv/builds-with
	$(PIP) install --no-build-isolation -Ccmake.define.NATCORE_TESTING=ON --editable '.[all]'
	@touch $@

build/sanitize/built: OPTIONS = NATCORE_SANITIZE=ON NATCORE_DEBUG=ON
build/races/built: OPTIONS = NATCORE_RACES=ON
build/coverage/built: OPTIONS = NATCORE_COVERAGE=ON
build/debug/built: OPTIONS = NATCORE_DEBUG=ON
build/portable/built: OPTIONS = NATCORE_PORTABLE=ON
build/%/built: .venv/built .ci/variant $(PACKAGE)
	.ci/variant $* $(OPTIONS)
	@touch $@

.venv/tested-with: pyproject.toml | .venv/made
	$(PIP) install --group test
	@touch $@

.venv/documented-with: pyproject.toml | .venv/made
	$(PIP) install --group docs
	@touch $@

.venv/linted-with: pyproject.toml | .venv/made
	$(PIP) install --group lint
	@touch $@
