# make docker-train [PROFILE=cpu] [DATA=data/ltdv2] [ARGS="--preset rx5600xt --name first"]
# PROFILE: a file of docker/profiles; empty: the one for this machine's card. DATA: LTDv2's files; empty: the
# workspace's. ARGS: of the toolkit's verb. IMAGE: an image to run instead of this checkout's. BASE: an image to
# build on instead of the profile's own. RUNS: a folder for runs. ENGINE: options for the engine, as
# ENGINE="-e WANDB_MODE=offline --memory 16g --detach". NAME: a container, for logs, attach and stop. PORT: of
# this machine, for docker-notebook.
# The work is done by `toolkit container`, from .venv or from a small environment of its own, so that nobody
# installs PyTorch twice.
PROFILE ?=
DATA    ?=
BASE    ?=
IMAGE   ?=
RUNS    ?=
ENGINE  ?=
NAME    ?=
PORT    ?= 8888
ARGS    ?=
# A Python 3.10 for test-rocm52; empty: the one on the path, or of pyenv.
PYTHON310 ?=

ENGINE_VENV   := $(if $(wildcard $(VENV)/.installed),$(VENV),.venv-docker)
CONTAINER     := TOOLKIT_CALLER=make PYTHONPATH="$(CURDIR)" $(ENGINE_VENV)/bin/python -m toolkit container
IMAGE_OPTIONS := $(if $(PROFILE),--profile "$(PROFILE)") $(if $(BASE),--base "$(BASE)")
RUN_OPTIONS   := $(if $(PROFILE),--profile "$(PROFILE)") $(if $(DATA),--data "$(DATA)") \
                 $(if $(BASE),--base "$(BASE)") $(if $(IMAGE),--image "$(IMAGE)") $(if $(RUNS),--runs "$(RUNS)") \
                 $(ENGINE)

# The life of an entry, each step a verb of `toolkit container`.
DOCKER_VERBS  := demo sample download prepare verify train evaluate predict submit monitor runs
DOCKER_OTHERS := build test run shell notebook doctor ps logs attach stop prune

.PHONY: test-rocm52 $(DOCKER_VERBS:%=docker-%) $(DOCKER_OTHERS:%=docker-%)

.venv-docker/.installed: docker/constraints.txt
	$(PYTHON) -m venv .venv-docker
	.venv-docker/bin/python -m pip install --disable-pip-version-check -q -c $< docker msgspec numpy rich typer
	touch $@

docker-demo:      ## in the container: sample data to runs/demo/submission.zip in one go
docker-sample:    ## the first of six steps in the container: a small synthetic LTDv2
docker-download:  ## in the container: fetch LTDv2 (48 GB)
docker-prepare:   ## write the index
docker-verify:    ## check the frames
docker-train:     ## train
docker-evaluate:  ## score the newest best.pt
docker-predict:   ## predict the test split with it
docker-submit:    ## check the newest predictions and zip them
docker-monitor:   ## watch a run
docker-runs:      ## list the runs

$(DOCKER_VERBS:%=docker-%): docker-%: $(ENGINE_VENV)/.installed
	@$(CONTAINER) $* $(RUN_OPTIONS) $(ARGS)

docker-build: $(ENGINE_VENV)/.installed  ## build the image: PROFILE=cpu, or the card's own
	$(CONTAINER) build $(IMAGE_OPTIONS) $(ARGS)

docker-test: setup  ## build the image and prove it by running it
	PYTHON="$(abspath $(BIN))/python" scripts/container-test "$(or $(PROFILE),cpu)"

docker-run: $(ENGINE_VENV)/.installed  ## any command in the container: ARGS="toolkit compare first second"
	@$(CONTAINER) run $(RUN_OPTIONS) -- $(ARGS)

docker-shell: $(ENGINE_VENV)/.installed  ## a shell in the container
	@$(CONTAINER) shell $(RUN_OPTIONS)

docker-notebook: $(ENGINE_VENV)/.installed  ## Jupyter on PORT, once docker/extra.txt says jupyterlab
	@$(CONTAINER) run --name ltdv2-notebook -p 127.0.0.1:$(PORT):$(PORT) $(RUN_OPTIONS) -- sh -c '\
		cd "$$TOOLKIT_WORKSPACE" && mkdir -p runs/notebooks && \
		exec jupyter lab --ip=0.0.0.0 --port=$(PORT) --no-browser --notebook-dir=runs/notebooks "$$@"' sh $(ARGS)

docker-doctor: $(ENGINE_VENV)/.installed  ## what this machine is, seen from inside the container
	@$(CONTAINER) doctor $(IMAGE_OPTIONS) $(if $(IMAGE),--image "$(IMAGE)") $(ARGS) || [ $$? -eq 1 ]

docker-ps: $(ENGINE_VENV)/.installed  ## this checkout's containers
	@$(CONTAINER) ps $(ARGS)

docker-logs: $(ENGINE_VENV)/.installed  ## what a container prints: NAME=ltdv2-train
	@$(CONTAINER) logs $(NAME) $(ARGS)

docker-attach: $(ENGINE_VENV)/.installed  ## stand for a container again: its output, its status, Ctrl-C
	@$(CONTAINER) attach $(NAME)

docker-stop: $(ENGINE_VENV)/.installed  ## stop a container; a training saves first
	@$(CONTAINER) stop $(NAME)

docker-prune: $(ENGINE_VENV)/.installed  ## remove this checkout's old images and ended containers, nothing else
	@$(CONTAINER) prune $(ARGS)

test-rocm52:  ## the versions of the profile rocm52, without ROCm
	PYTHON310="$(PYTHON310)" scripts/test-rocm52
