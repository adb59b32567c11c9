# make serve   set everything up and serve apps/ultrarefiner (a copy of sample-data, or STUDIES=...) on 127.0.0.1
# make test    what CI runs: lint, types, every test          make quick   the same without slow and server tests
# make clean   remove what the tools left behind              make distclean   the environment as well
#
# Variables: STUDIES (folder or DICOMweb address; spaces are fine), HOST, PORT, PYTHON (a Python 3.10-3.12),
#            ARGS (more options for monailabel start_server, such as ARGS="--conf refiner_weights ultrasam").

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

STUDIES ?=
HOST ?= 127.0.0.1
PORT ?= 8000
PYTHON ?=
ARGS ?=
export STUDIES HOST PORT PYTHON

VENV := .venv
BIN := $(VENV)/bin
comma := ,
# The CUDA extension of sam2 (a dependency of monailabel that is not used here) is not worth a compiler.
export SAM2_BUILD_CUDA := 0

.PHONY: help serve test quick lint clean distclean

help:
	@sed -n '1,6s/^# \{0,1\}//p' Makefile

# --- environment: one stamp per extra, made again when setup.cfg changes ------------------------------------------------

$(VENV)/.python:
	@if [ -n "$$PYTHON" ]; then candidates=("$$PYTHON"); else candidates=(python3.11 python3.12 python3.10 python3); fi
	fits='import sys, venv, ensurepip; raise SystemExit(not (3, 10) <= sys.version_info[:2] < (3, 13))'
	chosen=""
	for candidate in "$${candidates[@]}"; do
	  if "$$candidate" -c "$$fits" >/dev/null 2>&1; then chosen="$$candidate"; break; fi
	done
	if [ -z "$$chosen" ]; then
	  echo "No suitable Python among: $${candidates[*]}" >&2
	  echo "Needed: Python 3.10, 3.11 or 3.12 with its venv module (on Debian: apt-get install python3 python3-venv)." >&2
	  echo "To name one: make serve PYTHON=/path/to/python3.11" >&2
	  exit 1
	fi
	echo "Making $(VENV) with $$("$$chosen" --version) ($$chosen)"
	"$$chosen" -m venv $(VENV)
	touch $@

# pip's words go to a log; the console shows the last of them, and all of its end where it fails.
define install
	@mkdir -p .work
	log=.work/install.log
	echo "Installing .[$(1)] into $(VENV): the first time some minutes and about 9 GB of disk. All output: $$log"
	pip=($(BIN)/python -m pip install --disable-pip-version-check --progress-bar off)
	set -m  # a process group of its own, so that Ctrl-C can end pip with its children
	{ "$${pip[@]}" --upgrade "pip>=24" "setuptools>=77" wheel && "$${pip[@]}" --editable ".[$(1)]"; } > $$log 2>&1 &
	job=$$!
	set +m
	trap 'kill -- -$$job 2>/dev/null || true' INT TERM
	while kill -0 $$job 2>/dev/null; do
	  if [ -t 1 ]; then printf '\r\033[K  %4d s  %s' $$SECONDS "$$(tail -n 1 $$log | tr -d '\r' | cut -c 1-90)"; fi
	  sleep 1
	done
	if [ -t 1 ]; then printf '\r\033[K'; fi
	wait $$job || { tail -n 25 $$log >&2; echo "The installation failed; all of its output: $$log" >&2; exit 1; }
	echo "Installed after $$SECONDS s"
	# monailabel's own start script breaks paths with spaces and needs an activated environment: put a sound one there.
	printf '%s\n' '#!/bin/sh' 'bin="$$(cd "$$(dirname "$$0")" && pwd)"' 'PATH="$$bin:$$PATH"; export PATH' \
	  'exec "$$bin/python" -m monailabel.main "$$@"' > $(BIN)/monailabel
	chmod +x $(BIN)/monailabel
endef

$(VENV)/.serve: setup.cfg | $(VENV)/.python
	$(call install,train$(comma)video)
	touch $@

# The test extra holds all that serving needs, so it satisfies both stamps.
$(VENV)/.test: setup.cfg pyproject.toml | $(VENV)/.python
	$(call install,test)
	touch $@ $(VENV)/.serve

# --- serve --------------------------------------------------------------------------------------------------------------

serve: $(VENV)/.serve
	@exec $(BIN)/python -m ultrarefiner_monai.cli.launch --studies "$$STUDIES" --host "$$HOST" --port "$$PORT" $(ARGS)

# --- checks -------------------------------------------------------------------------------------------------------------

lint: $(VENV)/.test
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy ultrarefiner_monai
	cd apps/ultrarefiner && ../../$(BIN)/mypy --config-file ../../pyproject.toml .

# Two files at a time: most tests wait for a server or compute on one thread.
test: lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile

quick: lint
	@$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not server"

clean:
	rm -rf build dist *.egg-info .ruff_cache .mypy_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)*' -prune -exec rm -rf {} +

# .work holds studies, proposals and labels: it is never removed by a make target.
distclean: clean
	rm -rf $(VENV)
