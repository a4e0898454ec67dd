#!/bin/bash
# Brings the programs that the benchmark compares with, each by itself:
#
#   bench/peers/prepare.sh NAME...
#
# They go to $BH_PEERS_DIR, or blackhole/peers in the user's cache, and are left alone when they are
# up to date. Nothing is installed on the system: packages of the distribution are fetched and
# unpacked there. What cannot be brought fails, and says why. Progress goes to stderr; stdout has
# what was made, as NAME=VALUE lines:
#
#   nats         NATS_SERVER
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${BH_PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/blackhole/peers}
who="bench peers"
source "$here/../../scripts/prepared.sh"

prepare_nats() {
    go_program nats-server "$here/nats" github.com/nats-io/nats-server/v2
    echo "NATS_SERVER=$cache/bin/nats-server"
}

alone
for one in "$@"; do
    case $one in
    nats) "prepare_$one" ;;
    *) fail "there is no $one to prepare" ;;
    esac
done
