PROFILE ?= laptop
PYTHON ?= python3.11
ACTIVATE := . .venv/bin/activate
PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.PHONY: help repro plan methods bench gpu read readme test test-all same lint env lock clean

help:
	@echo "make repro [PROFILE=smoke|laptop]        run the study and print its table"
	@echo "make plan [PROFILE=paper]                time two steps of every training, and make nothing"
	@echo "make methods                             run the benchmark of presets under the chosen profile (hours)"
	@echo "make bench                               measure size, memory and speed on real shapes (20 minutes)"
	@echo "make gpu                                 on a CUDA machine: tests that need it, and the benchmark of training"
	@echo "make read                                open the executed notebooks as pages in a browser"
	@echo "make test                                run the tests but the slow ones"
	@echo "make test-all                            run all tests"
	@echo "make same [COMMIT=HEAD]                  show that a change alters no number of the smoke study (minutes)"
	@echo "make lint                                check style, format and types"
	@echo "make readme                              fill the tables of README.md and docs/ from results/"
	@echo "make env                                 only make the environment, .venv"
	@echo "make lock                                write requirements.lock anew from pyproject.toml"

repro: .venv/.complete
	@$(ACTIVATE) && python -m dqlib.study profile $(PROFILE) --run
	@changed=$$(git diff --name-only -- params.yaml dvc.lock results 2>/dev/null | cut -d/ -f1 | uniq | xargs); \
	  test -z "$$changed" || echo "In git this has changed $$changed; 'git checkout $$changed' goes back to the commit."

plan: .venv/.complete
	@$(ACTIVATE) && python -m dqlib.study plan --params $(PROFILE)

methods: .venv/.complete
	@$(ACTIVATE) && dvc repro methods

bench: .venv/.complete
	@$(ACTIVATE) && PYTHONPATH=. python benchmarks/inference.py

gpu: .venv/.complete
	@$(ACTIVATE) && PYTHONPATH=. python benchmarks/gpu.py

read: .venv/.complete
	@$(ACTIVATE) && python -m dqlib.study read

readme: .venv/.complete
	@$(ACTIVATE) && python -m dqlib.study readme

test: .venv/.complete
	@$(ACTIVATE) && python -m pytest -q -m "not slow" $(PARALLEL)

test-all: test
	@$(ACTIVATE) && python -m pytest -q -m slow $(PARALLEL)

same: .venv/.complete
	@$(ACTIVATE) && python tools/same.py $(COMMIT)

lint: .venv/.complete
	@$(ACTIVATE) && ruff check . && ruff format --check . && mypy dqlib

env: .venv/.complete

.venv/.complete: requirements.lock pyproject.toml tools/make_env.py
	$(PYTHON) tools/make_env.py .venv requirements.lock

lock:
	$(PYTHON) tools/make_lock.py requirements.lock

clean:
	rm -rf .venv build runs
