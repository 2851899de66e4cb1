# mlxforge: `make cpt` and `make sft` train, `make help` lists the rest. Nothing is installed outside .venv but OpenBLAS on Linux.

VENV    ?= .venv
PYTHON  := $(VENV)/bin/python
FORGE   := $(VENV)/bin/mlxforge
MODEL   ?=
DATA    ?=
VALID   ?=
RUN     ?=
PROJECT ?= handbook
ARGS    ?=
# The shipped model takes its own preset, another one the defaults. Own data brings its own validation set, or a split.
CPT_PRESET := $(if $(MODEL),--model "$(MODEL)",-c configs/handbook-cpt.yaml)
CPT_DATA   := $(if $(DATA),--data "$(DATA)" $(if $(VALID),--valid "$(VALID)",--set valid=null))

# Answers are learned on the last run of cpt, where there is one. Own conversations take the preset that fits the base.
SFT_PRESET = -c configs/$(if $(DATA),$(if $(BASE),sft-after-cpt,sft-standard),handbook-sft).yaml
SFT_DATA   := $(if $(DATA),--data "$(DATA)") $(if $(VALID),--valid "$(VALID)")

# Tests of one file stay together, since they share trained runs. More workers than these would wait for one GPU.
WORKERS = -n auto --maxprocesses 4 --dist loadfile

DPO_PRESET = -c configs/$(if $(DATA),dpo-standard,handbook-dpo).yaml

.PHONY: help cpt sft dpo export data pipeline dashboard test test-all check format docs clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  make cpt|sft|dpo MODEL=<hub id or folder> DATA=<file or folder> [VALID=...]   the same with your own"
	@echo "  make data MODEL=<hub id or folder> DATA=<documents>                           the same for making data"
	@echo "  make export RUN=<name>                                                        another run than the last"

$(VENV)/.installed: pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh "$(VENV)" ""
	@touch $@

$(VENV)/.installed-dev: pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh "$(VENV)" "[dev]"
	@touch $(VENV)/.installed $(VENV)/.installed-gguf $(VENV)/.installed-knowledge $@

# llama.cpp itself, which quantizes and verifies.
$(VENV)/.installed-gguf: pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh "$(VENV)" "[gguf]"
	@touch $(VENV)/.installed $@

# Readers of documents, and a model held to a schema.
$(VENV)/.installed-knowledge: pyproject.toml scripts/setup.sh
	@sh scripts/setup.sh "$(VENV)" "[docs,synth]"
	@touch $(VENV)/.installed $@

cpt: $(VENV)/.installed ## Continue pre-training: the shipped model learns the sample handbook
	@$(FORGE) cpt $(CPT_PRESET) $(CPT_DATA) $(ARGS)

sft: BASE = $(if $(MODEL),,$(shell $(FORGE) runs last --objective cpt 2>/dev/null))
sft: $(VENV)/.installed ## Fine-tune on conversations: the last cpt run learns to answer the sample questions
	@$(FORGE) sft $(SFT_PRESET) $(if $(MODEL),--model "$(MODEL)",$(if $(BASE),--model "run:$(BASE)")) $(SFT_DATA) $(ARGS)

dpo: BASE = $(if $(MODEL),,$(shell $(FORGE) runs last --objective sft 2>/dev/null))
dpo: $(VENV)/.installed ## Learn from pairs which answer is better: the last sft run on the sample pairs
	@$(FORGE) dpo $(DPO_PRESET) $(if $(MODEL),--model "$(MODEL)",$(if $(BASE),--model "run:$(BASE)")) $(SFT_DATA) $(ARGS)

export: NAME = $(if $(RUN),$(RUN),$(shell $(FORGE) runs last 2>/dev/null))
export: $(VENV)/.installed ## Hand over the last run: fused, as GGUF (f16 and q4_k_m, verified) and for Ollama, in exports/
	@test -n "$(NAME)" || { echo "error: there is no finished run to export: make sft, make cpt or make dpo first" >&2; exit 2; }
	@$(MAKE) -s --no-print-directory $(VENV)/.installed-gguf
	@$(FORGE) fuse "$(NAME)" -o "exports/$(NAME)/model" --force
	@$(FORGE) export ollama "$(NAME)" -o "exports/$(NAME)" --quant f16 --quant q4_k_m --force $(ARGS)
	@if [ -f "exports/$(NAME)/Modelfile.q4_k_m" ]; then cp "exports/$(NAME)/Modelfile.q4_k_m" "exports/$(NAME)/Modelfile"; fi

data: $(VENV)/.installed-knowledge ## Make training data: documents to a knowledge base to rows, a program to its commands
	@sh scripts/make_data.sh "$(FORGE)" "$(MODEL)" "$(DATA)"

pipeline: $(VENV)/.installed-gguf ## The whole road of the project PROJECT, made if new: documents to verified GGUF, one report
	@test -f "$(PROJECT)/forge.yaml" || $(FORGE) init "$(PROJECT)" --example handbook
	@$(FORGE) pipeline "$(PROJECT)" --yes $(ARGS)

dashboard: $(VENV)/.installed ## Watch the pipeline of PROJECT, or the newest run, from another terminal
	@$(FORGE) runs watch $(if $(RUN),"$(RUN)",$(if $(wildcard $(PROJECT)/forge.yaml),"$(PROJECT)")) $(ARGS)

test: $(VENV)/.installed-dev ## Run the tests (a few minutes)
	@$(PYTHON) -m pytest $(WORKERS) $(ARGS)

test-all: $(VENV)/.installed-dev ## Run the slow tests too
	@$(PYTHON) -m pytest -m "" $(WORKERS) $(ARGS)

check: $(VENV)/.installed-dev ## Format, lint, types, layers, docs
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(PYTHON) scripts/make_docs.py --check

format: $(VENV)/.installed-dev ## Format the code, mend what the linter can
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

docs: $(VENV)/.installed-dev ## Write docs/cli.md and docs/settings.md again
	@$(PYTHON) scripts/make_docs.py

clean: ## Remove the environment and caches; runs stay
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
