# Everything a person does with this repository starts here.
.DEFAULT_GOAL := help
SHELL := bash
CARGO ?= cargo
MANIFEST ?= examples/quickstart.yaml
# More than there are cores: tests with real processes mostly wait.
TEST_THREADS ?= 4

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: ## Build, and run MANIFEST (default examples/quickstart.yaml) on this machine (ARGS="--http-port 0")
	@echo "Building (some minutes the first time) ..."
	@$(CARGO) build --release --quiet -p chatgateway-operator -p chatgateway-dataplane
	@exec target/release/chatgateway-operator standalone -f $(MANIFEST) $(ARGS)

.PHONY: test
test: lint unit charts-test page-test peers ## Install what tests need, then run everything

.PHONY: lint
lint: ## Check formatting and lints
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings

.PHONY: unit
unit: ## Run the Rust tests: unit, golden, property, in-process and with real processes
	@tests/install-redis.sh
	@tests/control-plane/build.sh > /dev/null
	$(CARGO) build --workspace --bins
	RUST_TEST_THREADS=$(TEST_THREADS) $(CARGO) test --workspace

.PHONY: charts-test
charts-test: ## Test the charts and plain files: rendered, on a real API server, installed, upgraded, with their rights
	tests/charts/run.sh

.PHONY: page-test
page-test: ## Test the chat page in a real headless Chromium
	tests/page/run.sh

.PHONY: peers
peers: ## Test with clients nobody here wrote: Autobahn, h2spec, OpenAI SDKs, grpcurl, curl
	tests/peers/run.sh

.PHONY: chaos
chaos: ## Break pods, Redis and the network under hundreds of clients, and check what they were told (ARGS="--seconds 60 --seed N --clients 200")
	$(CARGO) build -p chatgateway-dataplane -p chatgateway-tests --bin chatgateway-dataplane --bin chaos
	target/debug/chaos $(ARGS)

.PHONY: cluster
cluster: ## Start a real one-node Kubernetes cluster (by kind where docker is, else from source packages), and print how to use it
	@tests/cluster/up.sh

.PHONY: cluster-down
cluster-down: ## End that cluster; nothing is left of it but built programs
	@tests/cluster/down.sh

.PHONY: e2e
e2e: ## Install on a real cluster, and break things there under live answers (ARGS="rollout kill"; KUBECONFIG=… for another one)
	@tests/e2e/run.sh $(ARGS)

.PHONY: bench
bench: ## Measure speed and memory against baselines in the same run (ARGS="--quick", ARGS="--case NAME")
	$(CARGO) build --release -p chatgateway-dataplane -p chatgateway-tests
	target/release/bench $(ARGS)

.PHONY: bench-redis
bench-redis: ## Measure sessions in Redis: cost, takeover, rollout, reconnects (the same ARGS)
	$(CARGO) build --release -p chatgateway-dataplane -p chatgateway-tests \
		--bin chatgateway-dataplane --bin bench --bin model-sim
	target/release/bench redis $(ARGS)

.PHONY: bench-upstream
bench-upstream: ## Measure model servers under pressure: batching, overload, a dead server, limits (the same ARGS)
	$(CARGO) build --release -p chatgateway-dataplane -p chatgateway-tests \
		--bin chatgateway-dataplane --bin bench --bin model-sim
	target/release/bench upstream $(ARGS)

.PHONY: bench-operator
bench-operator: ## Measure the operator at 1,000 gateways on a real API server
	@tests/control-plane/build.sh > /dev/null
	$(CARGO) build --release -p chatgateway-operator -p chatgateway-control-plane
	target/release/bench-operator $(ARGS)

.PHONY: images
images: ## Build the images of operator and data plane with docker, podman or buildah (IMAGES="chatgateway-model-sim")
	images/build.sh $(IMAGES)

.PHONY: crds
crds: ## Write crds/ from the resource's types
	$(CARGO) run --quiet -p chatgateway-operator -- crds > crds/chatgateways.yaml

.PHONY: charts
charts: ## Write what charts/ and deploy/ make from crds/ and from each other
	charts/generate.sh

.PHONY: goldens
goldens: ## Rewrite the golden files; look at the difference before you commit it
	UPDATE_GOLDENS=1 $(CARGO) test --workspace golden
	UPDATE_GOLDENS=1 tests/charts/run.sh render

.PHONY: fmt
fmt: ## Format the code
	$(CARGO) fmt --all
