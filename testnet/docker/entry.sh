#!/bin/sh
# Mounts a whole /proc beside the one that Docker hides parts of, then becomes the node.
#
# The kernel lets a plugin's namespaces have a fresh /proc only where a whole one is visible. With
# `docker run` one says `--security-opt systempaths=unconfined` for that; docker-compose 1.29 cannot.
set -eu
mkdir -p /run/whole-proc
mount -t proc proc /run/whole-proc
exec "$@"
