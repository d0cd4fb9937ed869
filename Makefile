# make run, make test, make help. Each target makes .venv itself if there is none, and installs only what it needs.
#   TORCH=cpu   a CPU build of torch, no CUDA packages (the default where no NVIDIA driver answers)
#   TORCH=cuda  the torch build that the package index gives for this platform (on Linux: CUDA)
#   PYTHON=...  the interpreter to make .venv with (default: the first Python >= 3.11 found)

VENV  ?= .venv
TORCH ?= $(if $(shell nvidia-smi -L 2>/dev/null),cuda,cpu)
PY    := $(VENV)/bin/python

# A stamp is named after what it installed: another pyproject, constraints file or torch build installs again.
HASH := $(shell cat pyproject.toml constraints-cpu.txt scripts/install.sh | cksum | cut -d' ' -f1)-$(TORCH)
RUN_STAMP  := $(VENV)/.installed-run-$(HASH)
DEMO_STAMP := $(VENV)/.installed-demo-$(HASH)
TEST_STAMP := $(VENV)/.installed-test-$(HASH)

# Two workers of one thread each: faster on two cores than one process of two threads, and the same on every machine.
TEST_ENV := CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false
PYTEST   := $(TEST_ENV) $(PY) -m pytest -q -n 2 --dist loadgroup

.PHONY: help run demo test test-all lint doctor evaluate wheel venv venv-test clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1|\2/p' Makefile | column -t -s'|'

run: venv ## four questions about hands, answered by the small model; pictures of the answers in outputs/run
	@OMP_NUM_THREADS=1 $(PY) scripts/run_demo_questions.py --out outputs/run

demo: $(DEMO_STAMP) ## a page in your browser to ask about pictures and clips (this machine only; Ctrl-C ends it)
	@$(PY) demos/app.py --open

test: venv-test ## the fast tests (no GPU, no network)
	$(PYTEST) -m "not slow"

test-all: venv-test lint ## everything that continuous integration runs: lint, types, all tests
	$(PYTEST) --durations=15

lint: venv-test ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy

doctor: venv ## what is installed, what is missing, and what each missing thing would enable
	@$(PY) scripts/doctor.py

evaluate: venv ## score the small model on fresh synthetic test scenes; tables in outputs/evaluate
	$(PY) scripts/make_synthetic.py stills --out outputs/scenes --count 500 --split test
	OMP_NUM_THREADS=1 $(PY) scripts/evaluate.py referral --data outputs/scenes/test --model demos/assets/vlm_small --out outputs/evaluate --questions 300

wheel: venv-test ## dist/handvlm-*.whl (packages vlm, pose_tools, data)
	$(PY) -m pip wheel -q --no-deps -w dist .

venv: $(RUN_STAMP) ## .venv with what `make run` needs
	@$(PY) scripts/doctor.py --torch

venv-test: $(TEST_STAMP) ## .venv with the training, quantisation, demo, mining and development extras too
	@$(PY) scripts/doctor.py --torch

$(RUN_STAMP):
	@scripts/install.sh $(VENV) hands,render $(TORCH) $(PYTHON)
	@rm -f $(VENV)/.installed-run-* && touch $@

$(DEMO_STAMP):
	@scripts/install.sh $(VENV) hands,render,demo $(TORCH) $(PYTHON)
	@rm -f $(VENV)/.installed-run-* $(VENV)/.installed-demo-* && touch $(RUN_STAMP) $@

$(TEST_STAMP):
	@scripts/install.sh $(VENV) hands,render,train,quant,demo,mining,dev $(TORCH) $(PYTHON)
	@rm -f $(VENV)/.installed-run-* $(VENV)/.installed-demo-* $(VENV)/.installed-test-* && touch $(RUN_STAMP) $(DEMO_STAMP) $@

clean: ## remove build products (not .venv, not outputs)
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
