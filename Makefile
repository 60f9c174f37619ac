# Each target makes and reuses .venv by itself; PYTHON chooses the interpreter it is made with.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test test-interop check docs fuzz sanitize clean

demo: $(STAMP)  ## the whole path on bundled data: float → 4, 3, 2 bits → spikes
	$(BIN)/nbsnn demo

test: $(STAMP)  ## all tests
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

# Each simulator has an environment of its own, as they exclude each other's versions of nir; torch and the rest are those of .venv.
spikingjelly := spikingjelly==2.0.0 loguru tqdm requests
snntorch := snntorch==1.0.0
norse := norse==1.1.0
sinabs := sinabs==3.1.3 nir==1.0.4 nirtorch==2.0.2 pbr
SIMULATORS := spikingjelly snntorch norse sinabs

test-interop: $(SIMULATORS:%=.interop/%/.installed)  ## networks in other simulators
	set -e; for name in $(SIMULATORS); do \
	    PYTHONPATH=src .interop/$$name/bin/python -m pytest -p no:xdist -p no:cacheprovider tests/test_interop.py; done

.interop/%/.installed: $(STAMP)
	$(BIN)/python -m venv --without-pip .interop/$*
	shared=$$($(BIN)/python -c 'import site; print(site.getsitepackages()[0])'); \
	    own=$$(.interop/$*/bin/python -c 'import site; print(site.getsitepackages()[0])'); echo "$$shared" > $$own/shared.pth
	$(BIN)/python -m pip --python .interop/$*/bin/python install --quiet --no-deps $($*)
	touch $@

check: $(STAMP)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_imports.py

docs: $(STAMP)  ## the documentation as a site in site/; fails on a broken link
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m mkdocs build --strict --quiet

SECONDS ?= 60
fuzz: $(STAMP)  ## random files, recipes and command lines, for so many seconds
	PYTHONPATH=tests $(BIN)/python -m fuzz --seconds $(SECONDS)

sanitize: $(STAMP)  ## the native kernel under AddressSanitizer, UBSan and ThreadSanitizer; needs g++
	$(BIN)/python tests/fuzz/sanitizers.py --seconds $(SECONDS)

# The C++ is here because an editable install builds the native code once, into src; a pull may bring a newer one.
$(STAMP): pyproject.toml constraints.txt setup.py $(wildcard src/nbsnn/integer/native/* src/nbsnn/fused/*.[chi]*)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $(STAMP)

clean:  ## forget the environment and the runs
	rm -rf .venv .interop runs build dist site
