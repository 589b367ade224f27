# make docker-train [PROFILE=cpu] [DATA=data/ltdv2] [ARGS="--preset rx5600xt --name first"]
# PROFILE: a file of docker/profiles; empty: the one for this machine's card. DATA: LTDv2's files; empty: the
# workspace's. BASE: an image to build on instead of the profile's own. The work is done by `toolkit container`,
# from .venv or from a small environment of its own, so that nobody installs PyTorch twice.
PROFILE ?=
DATA    ?=
BASE    ?=
ARGS    ?=
# A Python 3.10 for test-rocm52; empty: the one on the path, or of pyenv.
PYTHON310 ?=

ENGINE_VENV   := $(if $(wildcard $(VENV)/.installed),$(VENV),.venv-docker)
CONTAINER     := PYTHONPATH="$(CURDIR)" $(ENGINE_VENV)/bin/python -m toolkit container
IMAGE_OPTIONS := $(if $(PROFILE),--profile "$(PROFILE)")
RUN_OPTIONS   := $(IMAGE_OPTIONS) $(if $(DATA),--data "$(DATA)")

.PHONY: docker-build docker-test docker-train docker-evaluate docker-submit docker-shell docker-doctor test-rocm52

.venv-docker/.installed: docker/constraints.txt
	$(PYTHON) -m venv .venv-docker
	.venv-docker/bin/python -m pip install --disable-pip-version-check -q -c $< docker msgspec numpy rich typer
	touch $@

docker-build: $(ENGINE_VENV)/.installed  ## build the image: PROFILE=cpu, or the card's own
	$(CONTAINER) build $(IMAGE_OPTIONS) $(if $(BASE),--base "$(BASE)")

docker-test: setup  ## build the image and prove it by running it
	PYTHON="$(abspath $(BIN))/python" scripts/container-test "$(or $(PROFILE),cpu)"

docker-train: docker-build  ## train in the container
	$(CONTAINER) train $(RUN_OPTIONS) $(ARGS)

docker-evaluate: $(ENGINE_VENV)/.installed  ## evaluate the newest best.pt in the container
	$(CONTAINER) evaluate $(RUN_OPTIONS) $(ARGS)

docker-submit: $(ENGINE_VENV)/.installed  ## predict the test split and zip it, in the container
	$(CONTAINER) run $(RUN_OPTIONS) -- sh -c 'toolkit predict best.pt --split test && toolkit submit --zip $(ARGS)'

test-rocm52:  ## the versions of the profile rocm52, without ROCm
	PYTHON310="$(PYTHON310)" scripts/test-rocm52

docker-shell: $(ENGINE_VENV)/.installed  ## a shell in the container
	$(CONTAINER) shell $(RUN_OPTIONS)

docker-doctor: $(ENGINE_VENV)/.installed  ## what this machine is, seen from inside the container
	$(CONTAINER) doctor $(IMAGE_OPTIONS) $(ARGS)
