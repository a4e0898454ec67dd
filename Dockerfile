# An image of a node, built from source. Needs a registry that has the two images below; where
# there is none, testnet/docker/up.sh builds one from what `make build` has made.
#
#   docker build -t blackhole .
#   docker run --rm -p 4001:4001 -p 4001:4001/udp -v blackhole:/var/lib/blackhole blackhole
#
# Plugins are kept apart by namespaces of their own. A container may not make those unless it is
# told so; without the next line a node runs, and refuses plugins rather than run them unprotected:
#
#   --security-opt seccomp=unconfined --security-opt apparmor=unconfined \
#   --security-opt systempaths=unconfined
ARG RUST_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libclang-dev make \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
ENV CARGO_TARGET_DIR=/target
RUN cargo build --locked --package blackhole-node --package blackhole-launcher \
    && testnet/docker/stage.sh /target/debug /stage

FROM ${BASE_IMAGE}
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates libstdc++6 \
    && rm -rf /var/lib/apt/lists/*
COPY --from=build /stage/node/ /usr/local/
# The identity must outlive the container.
ENV BH_DATA_DIR=/var/lib/blackhole BH_RUN_DIR=/run/blackhole
VOLUME /var/lib/blackhole
# Peers (TCP and QUIC), HTTP, gRPC, metrics. The last three listen on loopback until told
# otherwise with --http, --grpc and --metrics.
EXPOSE 4001/tcp 4001/udp 8080 9090 9091
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=20s CMD ["blackhole", "health"]
CMD ["bh-peer"]
