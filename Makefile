# SPDX-License-Identifier: Apache-2.0
CLANG   ?= clang-19
STRIP   ?= llvm-strip-19
CLANG_FORMAT ?= clang-format-19
GOLANGCI_LINT ?= go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
VERSION ?= $(shell .ci/version)
GOFLAGS_BUILD = -trimpath -ldflags '-s -w -X main.version=$(VERSION)'

.PHONY: help build generate man deb test test-kernel test-owners test-system bench fuzz lint check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## build bin/stated, static; needs Go only
	CGO_ENABLED=0 go build $(GOFLAGS_BUILD) -o bin/stated ./cmd/stated

generate: ## compile bpf/ anew; needs clang 19
	cd pkg/probe && BPF2GO_CC=$(CLANG) BPF2GO_STRIP=$(STRIP) go generate .

# One package at a time: the kernel gives the number of a network namespace to the
# next one when it is gone, and the tests tell each other's sockets apart by it.
test: ## run all tests; those that need BPF skip unless run as root
	go test -p 1 -timeout 10m ./...

man: ## write the manual pages and the completions of shells to build/man
	rm -rf build/man && mkdir -p build/man
	GOARCH= SOURCE_DATE_EPOCH=$$(.ci/version time) STATED_MAN=$(CURDIR)/build/man go test -count=1 -run 'TestManPages|TestCompletions' ./cmd/stated

deb: build man ## make build/stated_VERSION-1_ARCH.deb: program, unit, configuration, manual
	.ci/deb $(VERSION)

KERNEL ?= all
test-kernel: ## run the kernel tests in VMs: KERNEL=all, list, amd64-6.1, ...
	.ci/kernels $(KERNEL)

test-owners: ## run real servers and clients in VMs, and compare owners: KERNEL=amd64-6.12, ...
	.ci/owners $(filter-out all,$(KERNEL))

test-system: ## install the deb in a VM with systemd, and use the service
	.ci/system

bench: build ## measure stated beside its peers, as root
	.ci/bench

FUZZTIME ?= 10s
fuzz: ## fuzz every decoder for FUZZTIME
	go test -fuzz FuzzParseStates -fuzztime $(FUZZTIME) ./pkg/event
	go test -fuzz FuzzReader -fuzztime $(FUZZTIME) ./pkg/block
	go test -fuzz FuzzOpen -fuzztime $(FUZZTIME) ./pkg/spool
	go test -fuzz FuzzReader -fuzztime $(FUZZTIME) ./pkg/recording
	go test -fuzz FuzzLine -fuzztime $(FUZZTIME) ./pkg/recording
	go test -fuzz FuzzDecode -fuzztime $(FUZZTIME) ./pkg/probe
	go test -fuzz FuzzDatagram -fuzztime $(FUZZTIME) ./pkg/diag
	go test -fuzz FuzzEscape -fuzztime $(FUZZTIME) ./pkg/render
	go test -fuzz FuzzTable -fuzztime $(FUZZTIME) ./pkg/lifecycle
	go test -fuzz FuzzScan -fuzztime $(FUZZTIME) ./pkg/sink/flat
	go test -fuzz FuzzMessage -fuzztime $(FUZZTIME) ./pkg/sink/syslog
	go test -fuzz FuzzAnswer -fuzztime $(FUZZTIME) ./pkg/sink/syslog
	go test -fuzz FuzzEncode -fuzztime $(FUZZTIME) ./pkg/sink/otlp
	go test -fuzz FuzzEntry -fuzztime $(FUZZTIME) ./pkg/sink/forward
	go test -fuzz FuzzAnswer -fuzztime $(FUZZTIME) ./pkg/sink/forward
	go test -fuzz FuzzParseCgroup -fuzztime $(FUZZTIME) ./pkg/proc
	go test -fuzz FuzzParseMaps -fuzztime $(FUZZTIME) ./pkg/symbol
	go test -fuzz FuzzParsePerfMap -fuzztime $(FUZZTIME) ./pkg/symbol
	go test -fuzz FuzzELF -fuzztime $(FUZZTIME) ./pkg/symbol

lint: ## run the linters of .golangci.yaml; fetches and builds them, a minute at first
	$(GOLANGCI_LINT) run ./...

check: generate ## what CI checks beside tests: format, vet on every target, generated files
	@test -z "$$(gofmt -l cmd pkg)" || { gofmt -l cmd pkg; echo "run gofmt -w on these"; exit 1; }
	$(CLANG_FORMAT) --dry-run -Werror bpf/*.h bpf/*.c
	go vet ./...
	GOARCH=arm64 go vet ./...
	GOARCH=s390x go vet ./...
	go mod tidy -diff
	git diff --exit-code -- pkg/probe || { echo "the generated files are not those of bpf/: commit them together"; exit 1; }

clean: ## remove what was built
	rm -rf bin build
