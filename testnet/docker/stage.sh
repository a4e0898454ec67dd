#!/usr/bin/env bash
# Collects what goes into an image: stage.sh BIN_DIR STAGE_DIR
#
#   STAGE_DIR/node/bin      the executable under its four names, the launcher
#   STAGE_DIR/plugins       the first-party plugins that are built, a directory each
set -euo pipefail

bin=$1
stage=$2
repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

mkdir -p "$stage/node/bin" "$stage/plugins"
for name in bh-peer bh-launcher; do
  [ -x "$bin/$name" ] || { echo "stage: $bin/$name is not built" >&2; exit 1; }
  install "$bin/$name" "$stage/node/bin/$name"
  # Line tables are for where the program is built; without them the image is a third.
  if command -v strip >/dev/null; then strip --strip-debug "$stage/node/bin/$name"; fi
done
for name in blackhole blackhole-node bh-bootstrap; do ln -sfn bh-peer "$stage/node/bin/$name"; done
for manifest in "$repository"/plugins/*/plugin.yaml; do
  name=$(basename "$(dirname "$manifest")")
  [ -x "$bin/$name" ] || continue
  install -D -m 0644 "$manifest" "$stage/plugins/$name/plugin.yaml"
  install "$bin/$name" "$stage/plugins/$name/$name"
done
