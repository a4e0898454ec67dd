# What the scripts beside it share; sourced by them.
# shellcheck shell=bash

docker_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repository=$(cd "$docker_dir/../.." && pwd)
export BLACKHOLE_IMAGE=${BLACKHOLE_IMAGE:-blackhole-testnet}
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-blackhole}
nodes=(bootstrap a b c d e)

command -v docker >/dev/null || { echo "testnet: docker is not installed" >&2; exit 1; }
docker info >/dev/null 2>&1 ||
  { echo "testnet: no docker daemon answers (is it running, and may you use it?)" >&2; exit 1; }

if docker compose version >/dev/null 2>&1; then
  compose() { docker compose -f "$repository/testnet/docker-compose.yml" "$@"; }
elif command -v docker-compose >/dev/null; then
  compose() { docker-compose -f "$repository/testnet/docker-compose.yml" "$@"; }
else
  echo "testnet: neither the docker compose plugin nor docker-compose is installed" >&2
  exit 1
fi

declare -A containers=()

# Fills `containers` with the nodes' ids: asked for once, because compose takes its time.
find_containers() {
  local node
  for node in "${nodes[@]}"; do containers[$node]=$(compose ps -q "$node"); done
}

# on NODE WORD…: runs a command in a node's container.
on() {
  local node=$1
  shift
  docker exec "${containers[$node]:?$node has no container: is the testnet up?}" "$@" </dev/null
}

# await SECONDS COMMAND…: repeats a command until it succeeds; its last output is the evidence.
await() {
  local end=$((SECONDS + $1)) seen
  shift
  until seen=$("$@" 2>&1); do
    if [ $SECONDS -ge $end ]; then
      echo "it did not come true: $*" >&2
      echo "$seen" >&2
      return 1
    fi
    sleep 0.2
  done
  [ -z "$seen" ] || echo "$seen"
}
