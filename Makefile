.DEFAULT_GOAL := help
SHELL := /bin/bash
TOOL := go tool -modfile=tools/go.mod

.PHONY: help test model chaos chaos-registrar bench-registrar bench-rotation bench bench-rotating bench-push bench-observing bench-reseal drill fuzz wrk cover lint proto verify vuln sandbox build redis image chart-docs chart-test

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

sandbox: ## everything in one process, without any set-up
	go run ./cmd/sandbox

test: redis ## all tests, with the race detector, against a real redis-server
	go test -race -parallel 4 -timeout 15m -coverprofile cover.out -coverpkg ./internal/store,./internal/grant,./tokenserver,./registrar ./...

model: ## 20,000 random schedules of the rotation protocol; SEED=n for others
	go test -run 'TestModel$$' ./internal/renewal -schedules 20000 -seed $(or $(SEED),1)

chaos: redis ## the programs under kill -9, with a Redis that forgets; KILLS=n, SEED=n
	go test -timeout 60m -v -run TestChaos ./internal/e2e -race-built=false -kills $(or $(KILLS),500) -chaos-seed $(or $(SEED),1)

chaos-registrar: redis ## two registrars under kill -9, a tenth of Recall's answers lost; USERS=n, KILLS=n, SEED=n
	go test -timeout 60m -v -run TestRegistrationsSurviveKills ./internal/e2e -race-built=false \
		-registrations $(or $(USERS),500) -registrar-kills $(or $(KILLS),50) -registrar-seed $(or $(SEED),1)

bench-registrar: redis ## registrations a second beside a bare loop; p99 of GetUser meanwhile
	go test -run '^$$' -bench Registrations -benchtime 1x ./internal/e2e -race-built=false

bench-rotation: redis ## refreshes a second beside a bare loop; what it costs to wait
	go test -run '^$$' -bench Refresh -benchtime 1x ./internal/renewal
	go test -run '^$$' -bench Idle -benchtime 1x ./internal/e2e -race-built=false

bench: redis wrk ## the callback beside a bare handler, under load
	go test -run '^$$' -bench Callback -benchtime 1x ./internal/e2e -race-built=false -rounds 9 -seconds 3

bench-rotating: redis wrk ## the callback's tail while 100,000 tokens are renewed
	go test -run '^$$' -bench Rotating -benchtime 1x ./internal/e2e -race-built=false -rounds 3 -seconds 5

bench-observing: redis wrk ## the callback with metrics and without, with traces and without
	go test -run '^$$' -bench Observing -benchtime 1x ./internal/e2e -race-built=false -rounds 9 -seconds 3

bench-push: redis ## how soon one process sees what another has changed
	go test -run '^$$' -bench Push -benchtime 1x ./internal/e2e -race-built=false

bench-reseal: redis ## replacing the key of 100,000 grants while callbacks come
	go test -run '^$$' -bench Reseal -benchtime 1x -timeout 20m ./internal/e2e -race-built=false

drill: redis ## what goes wrong at night, caused in running stacks under Prometheus with the chart's rules
	go -C tools/prometheus build -tags remove_all_sd -o $(CURDIR)/bin/prometheus github.com/prometheus/prometheus/cmd/prometheus
	go test -tags drill -timeout 60m -v -run TestDrill ./internal/e2e -race-built=false -prometheus $(CURDIR)/bin/prometheus

fuzz: ## what the world can send, for a minute each
	for target in FuzzURL FuzzVerifier FuzzEvents; do go test -run '^$$' -fuzz "^$$target$$" -fuzztime 1m ./tokenserver || exit 1; done

cover: ## judge the coverage that the last `make test` has measured
	.ci/coverage cover.out 85

lint: ## vet and golangci-lint
	go vet -tags chart,drill ./...
	$(TOOL) golangci-lint run --build-tags chart,drill ./...
	cd tools/image && go vet ./... && go tool -modfile=../go.mod golangci-lint run --disable depguard ./...

proto: ## generate the Go code of the API
	$(TOOL) buf generate

verify: proto ## fail if the API does not lint or generated code or modules are stale
	$(TOOL) buf lint
	go mod tidy -diff
	cd tools && go mod tidy -diff
	cd tools/chart && go mod tidy -diff
	cd tools/image && go mod tidy -diff
	git diff --exit-code -- proto
	test -z "$$(git status --porcelain -- proto)"

vuln: ## known vulnerabilities (asks a database on the network)
	$(TOOL) govulncheck ./...

build: ## the programs, into bin/
	go build -trimpath -o bin/ ./cmd/...

wrk:
	@command -v wrk >/dev/null || { echo 'wrk is missing; on Debian: apt-get install wrk' >&2; exit 1; }

image: ## the image for amd64 and arm64, as an OCI archive in dist/, and its SBOM; VERSION=n, PUSH=reference
	go -C tools/image run . -root $(CURDIR) -out $(CURDIR)/dist/token-provider.tar $(if $(VERSION),-version $(VERSION)) $(if $(PUSH),-push $(PUSH))

chart-docs: ## the chart's README, from its values.yaml
	$$(tools/chart/build)/helm-docs --chart-search-root charts --sort-values-order file --log-level warning

chart-test: redis ## the chart and the image: rendered, against a real API server, and run
	CHART_TOOLS=$$(tools/chart/build) && export CHART_TOOLS && go test -count 1 -tags chart -timeout 15m ./internal/charttest
	go -C tools/image test -count 1 ./...

# The tests want Debian's redis-server; it is installed where that is possible.
redis:
	@command -v redis-server >/dev/null || .ci/install-redis
