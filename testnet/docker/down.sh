#!/usr/bin/env bash
# One command down: stops every node cleanly, removes containers and network. Images stay.
set -euo pipefail
# shellcheck source=testnet/docker/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

compose down --volumes --remove-orphans
