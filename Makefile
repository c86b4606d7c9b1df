# The commands of the project. `make try`, `make demo` and `make test` set up what they need; everything is cached in
# $ESPALIER_CACHE (~/.cache/espalier) and made once.
.DEFAULT_GOAL := help
.PHONY: help env console try tools cluster-up cluster-down cluster-status cluster-clean images demo test test-all test-table gpu lint format bench bench-trainer bench-operator bench-gateway bench-tinker bench-scoring bench-loop crds constraints krew release release-check docs docs-pages

help: ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

env: ## the Python environment, linked as .venv
	@dev/env.sh

console: ## the console's page, into the gateway's package
	@dev/console.sh >/dev/null

try: ## train a model on this machine, without Kubernetes, look at its tree, roll it back
	@dev/try.sh

tools: ## kind, kubectl, helm and the Kubernetes binaries, built once
	@dev/cluster.sh tools

cluster-up: ## a kind cluster with a registry (NODES=2 for two nodes; CLUSTER=current for the one in use)
	@dev/cluster.sh up

cluster-down: ## remove the cluster, keep the caches
	@dev/cluster.sh down

cluster-status: ## what runs
	@dev/cluster.sh status

cluster-clean: ## remove the cluster and the stored images
	@dev/cluster.sh clean

images: env ## build all images and push them to the local registry
	@dev/image.sh all

demo: ## train a model on a local cluster, look at its tree, roll it back
	@dev/demo.sh

test: ## every kind of test, end-to-end included; of exhaustive ones a sample
	@dev/test.sh -m "not exhaustive and not packages"

test-all: ## every test: also every point of death, every version of HUD's client, long simulations, users' packages
	@dev/test.sh

test-table: env ## write what the last run of the tests took into docs/developing/test-times.md
	@.venv/bin/python -m dev.test_table --write

gpu: ## on a machine with an NVIDIA GPU: the tests that need one, and a step of Qwen3-4B's shape with its profile
	@dev/gpu.sh

bench: env ## measure speed and size
	@bench/run.sh

bench-trainer: env ## measure a training step beside TRL's algorithms
	@bench/run.sh trainer

bench-operator: env ## measure the operator at 10,000 Checkpoints, and head moves
	@bench/run.sh operator

bench-gateway: env ## measure what the gateway adds, its memory, and promotion
	@bench/run.sh gateway

bench-tinker: env ## measure what Tinker's client waits for
	@bench/run.sh tinker

bench-scoring: env ## measure how many answers a second are scored
	@bench/run.sh scoring

bench-loop: env ## measure whole runs beside TRL, and schedules beside each other
	@bench/run.sh loop

lint: env ## style, types and layers
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@.venv/bin/mypy --config-file dev/mypy-tests.ini tests bench dev
	@.venv/bin/lint-imports

format: env ## rewrite the code in the project's style
	@.venv/bin/ruff check --fix-only .
	@.venv/bin/ruff format .

crds: env ## generate crds/ from the resource types
	@.venv/bin/python -m espalier.api.crds crds charts/espalier/files/crds

docs-pages: env ## generate what comes from the code: pages of docs/, dashboards of the chart
	@.venv/bin/python -m dev.docs
	@.venv/bin/python -m dev.dashboards

docs: docs-pages ## build the documentation as a site into out/docs, with its links checked
	@dev/docs.sh

krew: env ## the plugin of kubectl as krew installs it: archives and manifest (URL=where they will be published)
	@dev/krew.sh $(URL)

release: env ## all files of a release into out/release (VERSION=x.y.z URL=where they will be; more: dev/release.sh)
	@dev/release.sh build $(VERSION)

release-check: env ## build a release twice, and say what differs (VERSION and URL as above, IMAGES=operator for one image)
	@dev/release.sh check $(VERSION)

constraints: ## pin the newest versions that resolve together, with the hashes of their files
	@dev/constraints.sh
