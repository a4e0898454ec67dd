#!/usr/bin/env bash
# One command up: builds the testnet's image from this machine's build, where that has changed,
# and starts the bootstrap node and five peers.
#
# The executables come from $BH_BIN_DIR (make build). The base image comes from a registry where one
# is reachable, else from base-image.sh; BASE_IMAGE names another one (with Python 3 and libstdc++).
set -euo pipefail
# shellcheck source=testnet/docker/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

bin=${BH_BIN_DIR:-${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/blackhole/target}/debug}
base=${BASE_IMAGE:-blackhole-base}

have() { docker image inspect "$1" >/dev/null 2>&1; }

make_base() {
  # shellcheck source=/dev/null
  local release official; release=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
  official=debian:$release-slim
  if docker pull --quiet "$official" >/dev/null 2>&1; then
    echo "testnet: the base image is $official with Python 3"
    docker build --quiet --tag "$base" - >/dev/null <<END
FROM $official
RUN apt-get update && apt-get install -y --no-install-recommends ca-certificates libstdc++6 python3 && rm -rf /var/lib/apt/lists/*
END
  else
    echo "testnet: no registry is reachable; making the base image with debootstrap"
    "$docker_dir/base-image.sh" "$base"
  fi
}

# Everything that the image adds to its base, in one directory.
stage() {
  local stage=$1 PYTHON PYTHON_READ GREETER CHECK CLOCK GRPCURL environment
  "$docker_dir/stage.sh" "$bin" "$stage"
  local said; said=$("$repository/tests/fixtures/prepare.sh" python clock grpcurl)
  while IFS='=' read -r name value; do declare "$name=$value"; done <<<"$said"
  environment=$(dirname "$(dirname "$PYTHON")")
  mkdir -p "$stage/foreign/bin"
  install "$CLOCK" "$GRPCURL" "$stage/foreign/bin/"
  install -m 0644 "$GREETER" "$CHECK" "$stage/foreign/"
  cp -R "$environment" "$stage/foreign/python"
  rm -rf "$stage"/foreign/python/lib/python3*/site-packages/{pip,setuptools,grpc_tools}
  # The environment is moved to another machine: it must use that one's Python, of the same version.
  local version; version=$(basename "$(echo "$stage"/foreign/python/lib/python3*)")
  docker run --rm "$base" "/usr/bin/$version" --version >/dev/null 2>&1 || {
    echo "testnet: the base image $base has no $version, which the fixtures were made with;" >&2
    echo "         remove it (docker image rm $base), or install python3-venv and prepare them anew" >&2
    exit 1
  }
  ln -sfn "/usr/bin/$version" "$stage/foreign/python/bin/python"
  printf 'home = /usr/bin\ninclude-system-site-packages = false\n' >"$stage/foreign/python/pyvenv.cfg"
  install -m 0644 "$docker_dir/Dockerfile" "$stage/Dockerfile"
  install "$docker_dir/entry.sh" "$stage/entry.sh"
}

have "$base" || make_base
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
stage "$context"
# The classic builder is enough, and is always there; it says on stderr that it is old.
if ! said=$(docker build --quiet --build-arg "BASE_IMAGE=$base" --tag "$BLACKHOLE_IMAGE" \
  "$context" 2>&1 >/dev/null); then
  echo "$said" >&2
  exit 1
fi

compose up -d
find_containers
for node in a b c d e; do
  # Serving, and at least one peer of the network met.
  await 60 on "$node" sh -c 'blackhole --json status | grep -E "\"joined\": ?true"' >/dev/null || {
    compose logs --tail 30 "$node" >&2
    exit 1
  }
done
echo "testnet: up; gRPC of peer E at 127.0.0.1:${BLACKHOLE_GRPC_PORT:-19090}"
echo "         now: testnet/docker/story.sh, then testnet/docker/down.sh"
