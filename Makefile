# make demo                        stream a clip through the bundled engines   (VIDEO=file, URL or camera number)
# make test                        lint, types and tests
# make train GPUS=0,1              train; CONFIG=configs/person.toml for the detector, CONTINUE=1 to go on
# make data DATASET=coco           fetch a data set into data/ (coco, imagenet; mpii and posetrack say what to get by hand)
# make rehearse                    the whole product on rendered people, from training to a stream: pass or fail
# make doctor                      what this machine has, what is missing and how to get it
# make scoreboard PEERS=DIR        our engines beside public ones   (ANNOTATIONS=FILE IMAGES=DIR)
# make bench                       how fast training data load, beside a plain loop   (CONFIG=…)
# make bench-stream                how fast the stream is, beside a plain loop and rtmlib
# make export EPOCH=140            checkpoint → ONNX in output/engines        (RUN=person for the detector)
# make gpu-check                   the CUDA NMS kernel on this GPU, against torchvision
# make trt-check                   TensorRT engines of the bundled networks, checked and timed on this GPU
# make models                      train and export both bundled engines, as in docs/models.md
# CONTINUE=1 goes on after the last epoch; SET='epochs=20 batch=8' overrides keys of the config (no spaces in a value)
#
# Every target sets up what it needs: .venv for streaming, .venv-dev with TensorFlow for the rest.

PYTHON ?= python3
GPUS ?= 0
CONFIG ?= configs/pose.toml
RUN ?= pose
EPOCH ?=
SET ?=
VIDEO ?=
export VIDEO
PEOPLE ?= data/people
DATASET ?= coco
ANNOTATIONS ?= data/COCO/annotations/person_keypoints_val2017.json
IMAGES ?= data/COCO/images/val2017
PEERS ?=
TRAINED_ON ?= photographs with COCO, MPII, LSP-extended and teacher labels, rendered people (docs/models.md)
TUNING := --set epochs=9 --set decay_epochs=6 --set samples_per_epoch=4000 --set learning_rate=5e-4
STREAM := .venv/bin/python
DEV := .venv-dev/bin/python
TENSORFLOW := $(if $(shell command -v nvidia-smi),gpu,cpu)

# On a Jetson TensorRT comes with the system.
VENV_OPTIONS ?= $(if $(wildcard /etc/nv_tegra_release),--system-site-packages)

.DELETE_ON_ERROR:
.PHONY: help demo doctor rehearse dev test lint data scoreboard bench bench-stream gpu-check trt-check train export models

help:
	@sed -n 's/^# //p' Makefile | sed '/^Every/,$$d'

.venv/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV_OPTIONS) .venv
	$(STREAM) -m pip install --quiet --upgrade pip
	$(STREAM) -m pip install --quiet -e .
	@touch $@

.venv-dev/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV_OPTIONS) .venv-dev
	$(DEV) -m pip install --quiet --upgrade pip
	$(DEV) -m pip install --quiet -e '.[$(TENSORFLOW),train,export,eval,test]'
	@touch $@

demo: .venv/installed
	$(STREAM) -m runtime.demo $${VIDEO:+--video "$$VIDEO"}

doctor: .venv/installed
	$(STREAM) -m runtime.doctor

rehearse: .venv-dev/installed
	$(DEV) -m runtime.rehearse

dev: .venv-dev/installed

lint: dev
	$(DEV) -m ruff check .
	$(DEV) -m mypy runtime train export eval

test: lint
	$(DEV) -m pytest -n 2 --dist loadfile

data: .venv-dev/installed
	$(DEV) -m train.fetch_data $(DATASET)

scoreboard: .venv-dev/installed
	$(DEV) -m eval.scoreboard --annotations $(ANNOTATIONS) --images $(IMAGES) $(if $(PEERS),--peers $(PEERS))

# On a machine with a CUDA GPU and nvcc, with a Python that has PyTorch; nothing is installed.
gpu-check:
	@$(PYTHON) -m export.gpu_check

# On a machine with a CUDA GPU and TensorRT (pip install -e '.[tensorrt]' into .venv-dev); ANNOTATIONS and IMAGES for AP.
trt-check: .venv-dev/installed
	@$(DEV) -m export.trt_check --data $(PEOPLE) \
	  $(if $(filter-out file,$(origin ANNOTATIONS))$(wildcard $(ANNOTATIONS)),--annotations $(ANNOTATIONS) --images $(IMAGES))

# The stream beside a plain loop and rtmlib, which would bring an OpenCV of its own.
bench-stream: .venv-dev/installed
	$(DEV) -m pip install --quiet --no-deps 'rtmlib>=0.0.16,<0.1'
	$(DEV) -m eval.stream_bench $(if $(VIDEO),--video "$$VIDEO")

bench: .venv-dev/installed
	$(DEV) -m train.bench_input --config $(CONFIG) --packed $(foreach item,$(SET),--set '$(item)')

train: .venv-dev/installed
	$(DEV) -m train --config $(CONFIG) --gpu $(GPUS) $(if $(CONTINUE),--continue) $(foreach item,$(SET),--set '$(item)')

# Rendered people, which both bundled engines saw among the photographs.
data/walkers/person_keypoints.json: | .venv/installed
	$(STREAM) -m runtime.walkers --stills 400 --size 400x300 --out data/walkers/images --truth $@

# The bundled engines from PEOPLE (a folder with images/ and person_keypoints*.json): hours on two cores, see docs/models.md.
# Trained from ImageNet weights, pruned, trained on. SET reaches all three; a network or a name of your own it cannot give.
RUNS := output/model_dump
SETS = --set 'data=["$(PEOPLE)", "data/walkers"]' $(foreach item,$(SET),--set '$(item)')
models: dev data/walkers/person_keypoints.json
	for kind in pose person; do \
	  $(DEV) -m train --config configs/$${kind}_wide.toml --gpu $(GPUS) $(if $(CONTINUE),--continue) $(SETS) && \
	  last=$$(ls $(RUNS)/$${kind}_wide/snapshot_*.h5 | tail -n 1) && \
	  cut=$(RUNS)/$${kind}_cut/snapshot_001.weights.h5 && \
	  { test $$cut -nt $$last || $(DEV) -m train.prune $$last --config configs/$${kind}_wide.toml \
	    --like configs/$$kind.toml --name $${kind}_cut $(SETS); } && \
	  $(DEV) -m train --config configs/$$kind.toml --gpu $(GPUS) $(if $(CONTINUE),--continue) $(SETS) \
	    $(TUNING) --set init_weights=$$cut && \
	  $(DEV) -m export --run $(RUNS)/$$kind --out output/engines --trained-on '$(TRAINED_ON)' && \
	  cp output/engines/$$kind.onnx output/engines/$$kind.weights.h5 models/ || exit; \
	done

export: .venv-dev/installed
	$(DEV) -m export --run output/model_dump/$(RUN) $(if $(EPOCH),--epoch $(EPOCH))
