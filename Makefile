.DEFAULT_GOAL := help
SHELL := /bin/bash
TOOL := go tool -modfile=tools/go.mod

.PHONY: help sandbox build test model chaos bench drill fuzz mutants lint proto verify vuln image chart-test chart-docs redis

help:
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

sandbox: ## both programs with stand-ins for Zoom, Recall and Redis, in one process
	go run ./cmd/sandbox

build: ## the programs, into bin/
	go build -trimpath -o bin/ ./cmd/...

test: redis ## all tests with the race detector and a real redis-server, and their coverage
	go test -race -parallel 4 -timeout 15m -coverprofile cover.out -coverpkg ./internal/store,./internal/grant,./tokenserver,./registrar ./...
	.ci/coverage cover.out 85

model: ## 20,000 random schedules of the renewal protocol; SEED=n
	go test -run 'TestModel$$' ./internal/renewal -schedules 20000 -seed $(or $(SEED),1)

# A topology is a test and its flags. KILLS, SEED and USERS set its size.
chaos.single    = TestChaos -kills $(or $(KILLS),500) -chaos-seed $(or $(SEED),1)
chaos.registrar = TestRegistrationsSurviveKills -registrations $(or $(USERS),500) -registrar-kills $(or $(KILLS),50) -registrar-seed $(or $(SEED),1)

chaos: TOPOLOGY ?= single
chaos: redis ## the programs under kill -9; TOPOLOGY=single or registrar, KILLS=n, SEED=n, USERS=n
	$(call one_of,chaos,TOPOLOGY)
	go test -timeout 60m -v ./internal/e2e -race-built=false -run $(chaos.$(TOPOLOGY))

# A benchmark is a pattern, its package and its flags.
bench.callback  = Callback ./internal/e2e -race-built=false -rounds 9 -seconds 3
bench.rotating  = Rotating ./internal/e2e -race-built=false -rounds 3 -seconds 5
bench.observing = Observing ./internal/e2e -race-built=false -rounds 9 -seconds 3
bench.push      = Push ./internal/e2e -race-built=false
bench.reencrypt = Reencrypt ./internal/e2e -race-built=false
bench.renewal   = Refresh ./internal/renewal
bench.idle      = Idle ./internal/e2e -race-built=false
bench.registrar = Registrations ./internal/e2e -race-built=false

bench: NAME ?= callback
bench: redis ## one benchmark; NAME=callback, rotating, observing, push, reencrypt, renewal, idle or registrar
	$(call one_of,bench,NAME)
	@[[ ! ' callback rotating observing ' =~ ' $(NAME) ' ]] || command -v wrk >/dev/null || { echo 'wrk is missing; on Debian: apt-get install wrk' >&2; exit 1; }
	go test -run '^$$' -benchtime 1x -timeout 20m -bench $(bench.$(NAME))

# $(call one_of,PREFIX,VARIABLE) fails unless PREFIX.value is defined.
one_of = $(if $($(1).$($(2))),,$(error $(2) must be one of: $(sort $(patsubst $(1).%,%,$(filter $(1).%,$(.VARIABLES))))))

drill: redis ## eight faults in running stacks, under Prometheus with the chart's rules
	go -C tools/prometheus build -tags remove_all_sd -o $(CURDIR)/bin/prometheus github.com/prometheus/prometheus/cmd/prometheus
	go test -tags drill -timeout 60m -v -run TestDrill ./internal/e2e -race-built=false -prometheus $(CURDIR)/bin/prometheus

fuzz: ## untrusted input of the token server, one minute for each target
	for target in FuzzURL FuzzVerifier FuzzEvents; do go test -run '^$$' -fuzz "^$$target$$" -fuzztime 1m ./tokenserver || exit 1; done

mutants: redis ## mutations of one package that its tests do not notice; PKG=./internal/journal
	$(TOOL) gremlins unleash --workers 1 --timeout-coefficient 20 $(or $(PKG),$(error PKG is required, such as PKG=./internal/journal))

lint: ## go vet and golangci-lint
	go vet -tags chart,drill ./...
	$(TOOL) golangci-lint run --build-tags chart,drill ./...
	cd tools/image && go vet ./... && go tool -modfile=../go.mod golangci-lint run --disable depguard ./...

proto: ## generate the Go code of the API
	$(TOOL) buf generate

verify: proto ## fail if the API does not lint, or if generated code or modules are stale
	$(TOOL) buf lint
	go mod tidy -diff
	cd tools && go mod tidy -diff
	cd tools/chart && go mod tidy -diff
	cd tools/image && go mod tidy -diff
	git diff --exit-code -- proto
	test -z "$$(git status --porcelain -- proto)"

vuln: ## known vulnerabilities of the dependencies; uses the network
	$(TOOL) govulncheck ./...

image: ## the image for amd64 and arm64, as an OCI archive in dist/, and its SBOM; VERSION=n, PUSH=reference
	go -C tools/image run . -root $(CURDIR) -out $(CURDIR)/dist/token-provider.tar $(if $(VERSION),-version $(VERSION)) $(if $(PUSH),-push $(PUSH))

chart-test: redis ## chart and image: rendered, installed into an API server, and run
	CHART_TOOLS=$$(tools/chart/build) && export CHART_TOOLS && go test -count 1 -tags chart -timeout 15m ./internal/charttest
	go -C tools/image test -count 1 ./...

chart-docs: ## generate the chart's README from its values.yaml
	$$(tools/chart/build)/helm-docs --chart-search-root charts --sort-values-order file --log-level warning

# The tests use Debian's redis-server, which is installed where possible.
redis:
	@command -v redis-server >/dev/null || .ci/install-redis
