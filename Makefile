# Everything below works from a fresh clone on a machine with Python >= 3.11, make and git.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
WORKERS ?= 3
DAYS    ?= 3

export SQLMESH__DISABLE_ANONYMIZED_ANALYTICS := true
export PYTHONDONTWRITEBYTECODE := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo soak soak-bounded test lint test-slow test-peers test-analysis test-portfolio mutation mutation-bounded chaos chaos-bounded histories bench check-wheel clean

help: ## What there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.installed ## A virtual environment with meshgate and all that its demo and tests need

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "meshgate needs Python 3.11 or later; name one: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (about a minute, 1 GB)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[local,dev]'
	@touch $@

demo: setup ## The whole portfolio: five simulated hours with troubles, an oracle's verdict, plain SQLMesh beside it, a dashboard
	@$(BIN)/python examples/portfolio/demo.py

soak: setup ## The portfolio unattended, with every fault of its source: make soak DAYS=30; goes on where it was killed
	@$(BIN)/python examples/portfolio/soak.py --days $(DAYS)

soak-bounded: setup ## The same for CI: two simulated hours
	@$(BIN)/python examples/portfolio/soak.py --anew --hours 2 --rate 1200

lint: setup ## ruff and mypy
	@$(BIN)/ruff check src tests examples benchmarks
	@$(BIN)/ruff format --check src tests examples benchmarks
	@$(BIN)/mypy
	@MYPYPATH=src:examples/portfolio $(BIN)/mypy --package source --package dashboard --package maintenance -m soak -m demo -m plain -m oracle

test: setup lint ## Lint, types and every test but the slow lanes
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

test-slow: setup ## Whole processes, packages and histories: the wheel, crash points, signals, histories
	@$(BIN)/python -m pytest -m 'slow and not peers and not cli and not analysis and not portfolio' -n $(WORKERS) --dist loadgroup

test-peers: setup ## Plain SQLMesh still shows the faults that meshgate prevents; its own commands under the ledger
	@$(BIN)/python -m pytest -m 'peers or cli' -n $(WORKERS) --dist loadgroup tests/test_peers.py tests/test_peers_staleness.py \
		tests/test_enforced.py tests/test_signal_wrapper.py

test-analysis: setup ## Every analysed change is deployed as the analysis says, and each table compared with a recomputation
	@$(BIN)/python -m pytest -m '' -n $(WORKERS) --dist loadgroup tests/test_analysis.py \
		tests/test_analysis_corner_shop.py tests/test_analysis_deployed.py tests/test_analysis_followed.py tests/test_analysis_moved.py \
		tests/test_action.py

test-portfolio: setup ## The whole portfolio: each fault of its source, late dimension rows, dashboards, maintenance, the demo and a killed soak
	@$(BIN)/python -m pytest -m portfolio -n 2 --dist loadgroup

mutation: setup ## Removes each protecting line and shows that a test fails
	@$(BIN)/python tests/mutations.py

mutation-bounded: setup ## The same for CI: twelve of them, by chance
	@$(BIN)/python tests/mutations.py --sample 12

chaos: setup ## Kills, pauses and starves real runs: every crash point, 200 faults, and each mutation found (half an hour)
	@$(BIN)/python tests/crash_points.py --all
	@$(BIN)/python tests/chaos.py --seconds 300 --faults 200 --restarts 50
	@$(BIN)/python tests/chaos.py --without all

chaos-bounded: setup ## The same for CI: a few minutes
	@$(BIN)/python tests/chaos.py --seconds 30 --faults 20 --restarts 5

histories: setup ## Twenty random histories of the corner shop, from ticks to deploys and kills (half an hour)
	@$(BIN)/python tests/corner_history.py --seeds 20

bench: setup ## The figures of benchmarks/README.md
	@$(BIN)/python benchmarks/waiting.py
	@$(BIN)/python benchmarks/simulation.py speed
	@$(BIN)/python benchmarks/staleness.py
	@$(BIN)/python benchmarks/analyze.py

check-wheel: setup ## Builds the wheel and uses it from an empty environment
	@$(BIN)/python -m pytest -m slow tests/test_wheel.py

clean: ## Removes what the targets made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build examples/portfolio/.meshgate*
