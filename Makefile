# make serve   set everything up and serve apps/ultrarefiner (a copy of sample-data, or STUDIES=...) on 127.0.0.1
# make test    what CI runs: lint, types, every test          make quick   the same without slow and server tests
# make clean   remove what the tools left behind              make distclean   the environments as well
# make slicer-check   3D Slicer's own code (1 GB, an environment of its own) reads what the server sends, and writes to it
# make ohif-check     the viewer's tests on a newer OHIF (npm, 200 MB)
#
# Variables: STUDIES (folder or DICOMweb address; spaces are fine), HOST, PORT, PYTHON (a Python 3.10-3.14), TORCH=cpu (no CUDA
#            libraries: 5 GB less), ARGS (more options for monailabel start_server, such as ARGS="--conf refiner_weights ultrasam").

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

STUDIES ?=
HOST ?= 127.0.0.1
PORT ?= 8000
PYTHON ?=
TORCH ?=
ARGS ?=
export STUDIES HOST PORT PYTHON

VENV := .venv
BIN := $(VENV)/bin
SLICER := .venv-slicer
OHIF := .work/ohif-3.13.2
comma := ,
# Installed without what it asks for: setup.cfg says why, and names what it needs.
MONAILABEL := monailabel==0.8.5
# Where PyTorch without CUDA lies.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu

.PHONY: help serve test quick slicer-check ohif-check lint clean distclean

help:
	@sed -n '1,9s/^# \{0,1\}//p' Makefile

# --- environment: one stamp per extra, made again when setup.cfg changes ------------------------------------------------

# The number: an environment of before is not brought up to date, but made anew (pydicom 3, numpy 2; and much less in it).
$(VENV)/.python-2:
	@if [ -n "$$PYTHON" ]; then candidates=("$$PYTHON"); else candidates=(python3.11 python3.12 python3.13 python3.14 python3.10 python3); fi
	fits='import sys, venv, ensurepip; raise SystemExit(not (3, 10) <= sys.version_info[:2] < (3, 15))'
	chosen=""
	for candidate in "$${candidates[@]}"; do
	  if "$$candidate" -c "$$fits" >/dev/null 2>&1; then chosen="$$candidate"; break; fi
	done
	if [ -z "$$chosen" ]; then
	  echo "No suitable Python among: $${candidates[*]}" >&2
	  echo "Needed: Python 3.10 to 3.14 with its venv module (on Debian: apt-get install python3 python3-venv)." >&2
	  echo "To name one: make serve PYTHON=/path/to/python3.11" >&2
	  exit 1
	fi
	if [ -e $(VENV)/.python ]; then
	  echo "$(VENV) is of an older version, with other packages: it is made anew, and kept as $(VENV).old until that is done"
	  rm -rf $(VENV).old
	  mv $(VENV) $(VENV).old
	fi
	echo "Making $(VENV) with $$("$$chosen" --version) ($$chosen)"
	"$$chosen" -m venv $(VENV)
	touch $@

# pip's words go to a log; the console shows the last of them, and all of its end where it fails.
define install
	@mkdir -p .work
	log=.work/install.log
	echo "Installing .[$(1)] into $(VENV): the first time some minutes and 7 GB of disk (TORCH=cpu: 2.5). All output: $$log"
	pip=($(BIN)/python -m pip install --disable-pip-version-check --progress-bar off)
	set -m  # a process group of its own, so that Ctrl-C can end pip with its children
	torch=(true)
	if [ "$(TORCH)" = cpu ]; then torch=("$${pip[@]}" "torch<2.16" "torchvision<0.30" --index-url "$(TORCH_CPU_INDEX)"); fi
	{
	  "$${pip[@]}" --upgrade "pip>=24" "setuptools>=77" wheel && "$${torch[@]}" && "$${pip[@]}" --editable ".[$(1)]" &&
	    "$${pip[@]}" --no-deps "$(MONAILABEL)"
	} > $$log 2>&1 &
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
	rm -rf $(VENV).old
	# monailabel's own start script breaks paths with spaces and needs an activated environment: put a sound one there. It also
	# serves sample-data where no studies are named.
	printf '%s\n' '#!/bin/sh' 'bin="$$(cd "$$(dirname "$$0")" && pwd)"' 'PATH="$$bin:$$PATH"; export PATH' \
	  'exec "$$bin/python" -m ultrarefiner_monai.cli.stock "$$@"' > $(BIN)/monailabel
	chmod +x $(BIN)/monailabel
endef

$(VENV)/.serve: setup.cfg setup.py | $(VENV)/.python-2
	$(call install,train$(comma)video)
	touch $@

# The test extra holds all that serving needs, so it satisfies both stamps.
$(VENV)/.test: setup.cfg setup.py pyproject.toml | $(VENV)/.python-2
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

# 3D Slicer's own code, without its windows: it brings VTK and ITK of its own.
$(SLICER)/.ready: | $(VENV)/.test
	@if ! $(BIN)/python -c 'import platform, sys; raise SystemExit(sys.version_info >= (3, 14) or platform.machine() != "x86_64")'; then exit 0; fi
	echo "Installing 3D Slicer's code into $(SLICER): about 1 GB"
	$(BIN)/python -m venv $(SLICER)
	$(SLICER)/bin/python -m pip install --disable-pip-version-check --quiet "slicer-core>=5.13,<6"
	touch $@

slicer-check: $(SLICER)/.ready
	@if [ ! -e $(SLICER)/.ready ]; then echo "Left out: 3D Slicer's code comes for Python 3.10 to 3.13 on x86-64 only"; exit 0; fi
	export ULTRAREFINER_SLICER_PYTHON="$$PWD/$(SLICER)/bin/python"
	$(BIN)/python -m pytest tests/app/test_slicer_judge.py

# An OHIF that is built for a server's root, as npm has it.
$(OHIF)/.ready: | $(VENV)/.test
	@command -v npm >/dev/null || { echo "Needed: npm (on Debian: apt-get install npm)" >&2; exit 1; }
	mkdir -p $(OHIF)
	cd $(OHIF)
	npm pack --silent @ohif/app@3.13.2
	tar -xzf ohif-app-3.13.2.tgz package/dist
	rm ohif-app-3.13.2.tgz
	touch .ready

ohif-check: $(OHIF)/.ready
	@export ULTRAREFINER_OHIF="$$PWD/$(OHIF)/package/dist"
	$(BIN)/python -m pytest tests/app/test_viewer.py tests/app/test_viewer_tools.py tests/app/test_viewer_losses.py

clean:
	rm -rf build dist *.egg-info .ruff_cache .mypy_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)*' -prune -exec rm -rf {} +

# .work holds studies, proposals and labels: it is never removed by a make target.
distclean: clean
	rm -rf $(VENV) $(SLICER)
