# The image of the three programs. `make image` builds the same without a Docker
# engine; charts/token-provider runs it.
#
#   docker build --build-arg VERSION=0.1.0 --tag registry.example.com/token-provider:0.1.0 .
#
# The Go release is pinned, to build the same bytes again; pin the digest too if
# your registry's tags can move.
ARG GO_VERSION=1.26.8
FROM --platform=$BUILDPLATFORM docker.io/library/golang:${GO_VERSION}-bookworm AS build
WORKDIR /src
ENV CGO_ENABLED=0 GOTOOLCHAIN=local GOFLAGS=-trimpath GOAMD64=v1
COPY go.mod go.sum ./
RUN go mod download
# With .git: the commit is stamped into the programs, for --version.
COPY . .
ARG TARGETOS=linux TARGETARCH=amd64
RUN mkdir /out && for program in tokenserver registrar tokenctl; do \
      GOOS=$TARGETOS GOARCH=$TARGETARCH go build -buildvcs=true -ldflags '-s -w -buildid=' -o /out/$program ./cmd/$program || exit 1; \
    done

FROM scratch
ARG VERSION=dev
LABEL org.opencontainers.image.title="token-provider" \
      org.opencontainers.image.description="Serves Zoom access tokens to Recall.ai, and keeps them fresh: tokenserver, registrar, tokenctl" \
      org.opencontainers.image.version="${VERSION}"
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build --chmod=0555 /out/ /
ENV PATH=/
USER 65532:65532
CMD ["/tokenctl", "--help"]
