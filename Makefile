# make demo   a bad clip becomes a better one inside a real ComfyUI, results under demo/
# make test   the whole test suite, with a real ComfyUI and, where chromium is installed, a real browser
# make lint   ruff and pyright
# make setup  what the others need: .venv, the packages, a ComfyUI tree
# Set COMFYUI_PATH to use a ComfyUI that is already there; PYTHON to choose the interpreter.
# make test COMFYUI_VERSION=0.16.3   on another ComfyUI (0.16.3, 0.20.1)

PYTHON ?= python3
VENV   := .venv
PY     := $(VENV)/bin/python
# A stalled download is tried again soon; byte code is made at first import, most of it never.
PIP    := $(PY) -m pip --disable-pip-version-check install --quiet --no-compile --timeout 30 --retries 10
STAMPS := $(VENV)/.stamps
TORCH  := torch==2.11.0 torchvision==0.26.0 torchaudio==2.11.0

# Byte code is kept, whatever the environment says: without it every process of a test compiles torch anew.
export PYTHONDONTWRITEBYTECODE =

.DEFAULT_GOAL := demo
.PHONY: setup demo test lint clean distclean

setup: $(STAMPS)/comfyui

demo: setup
	$(PY) -m tools.demo

test: setup $(if $(COMFYUI_VERSION),$(STAMPS)/comfyui-$(COMFYUI_VERSION))
	$(PY) -m pytest $(ARGS)

lint: setup
	$(PY) -m ruff check .
	$(PY) -m pyright

clean:
	rm -rf demo tests/artifacts .pytest_cache .ruff_cache *.egg-info

distclean: clean
	rm -rf $(VENV) .cache

$(STAMPS)/venv:
	@$(PYTHON) -c "import venv, ensurepip" 2>/dev/null || \
	    { echo "$(PYTHON) has no venv module: install python3-venv, or set PYTHON to another interpreter" >&2; exit 1; }
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS) && touch $@

# torchvision and torchaudio must match torch: ComfyUI imports all three.
$(STAMPS)/torch: $(STAMPS)/venv
	$(PY) -c "import torch, torchvision, torchaudio" 2>/dev/null || $(PIP) $(TORCH)
	@touch $@

# sam2 is built against the torch that is there; a build environment of its own would fetch torch a second time.
$(STAMPS)/packages: $(STAMPS)/torch pyproject.toml requirements.txt
	$(PIP) setuptools wheel
	$(PY) -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('sam2') is None)" || \
	    SAM2_BUILD_CUDA=0 $(PIP) --no-build-isolation sam2
	$(PIP) --editable ".[dev]"
	@touch $@

$(STAMPS)/comfyui: $(STAMPS)/packages tools/install_comfyui.py
	COMFYUI_VERSION= $(PY) -m tools.install_comfyui
	@touch $@

# Other versions run on the packages of the default one.
$(STAMPS)/comfyui-%: $(STAMPS)/comfyui
	COMFYUI_VERSION=$* $(PY) -m tools.install_comfyui --no-requirements
	@touch $@
