# make serve    set up .venv, fetch the default model, serve on http://127.0.0.1:8000
# make install  set up .venv alone
# make test     set up .venv with the development tools, run the tests
# make nightly  set up .venv with the development tools, run the tests' large sizes (minutes)
# make check    formatting, types, imports
# make clean    remove .venv
#
# Variables, on the command line or in the environment:
#   ARGS              options of `baton serve`: make serve ARGS="--port 8123 --workers 2p1d"
#                     (make test, make nightly: options of pytest)
#   PYTHON            the Python to build .venv with, 3.11 or newer (default: python3)
#   VENV              where to build it (default: .venv)
#   TORCH_INDEX_URL   package index to look for torch on besides pip's own, such as the one PyTorch
#                     publishes its CPU builds on: much smaller than the default build with CUDA

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
export PYTHON VENV TORCH_INDEX_URL

.PHONY: serve install test nightly check clean

serve:
	@scripts/setup
	@exec $(VENV)/bin/baton serve $(ARGS)

install:
	@scripts/setup

test:
	@scripts/setup --dev
	$(VENV)/bin/python -m pytest -m "not nightly" $(ARGS)

nightly:
	@scripts/setup --dev
	$(VENV)/bin/python -m pytest -m nightly $(ARGS)

check:
	@scripts/setup --dev
	@scripts/check

clean:
	rm -rf $(VENV)
