#!/usr/bin/env bash
# Makes the base image of the testnet with debootstrap, where no image registry is reachable.
# Needs root, debootstrap and a Debian (or Ubuntu) mirror; takes a minute or two.
#
#   sudo testnet/docker/base-image.sh [IMAGE]        default: blackhole-base
#
# The release is this machine's own, so that what was built here runs there.
set -euo pipefail

image=${1:-blackhole-base}
[ "$(id -u)" -eq 0 ] || { echo "base-image: debootstrap needs root: sudo $0" >&2; exit 1; }
command -v debootstrap >/dev/null ||
  { echo "base-image: apt-get install debootstrap, then try again" >&2; exit 1; }

# shellcheck source=/dev/null
. /etc/os-release
release=${BASE_RELEASE:-${VERSION_CODENAME:?this system does not say its release}}
case $ID in
  ubuntu) mirror=${BASE_MIRROR:-http://archive.ubuntu.com/ubuntu} ;;
  *) mirror=${BASE_MIRROR:-http://deb.debian.org/debian} ;;
esac

root=$(mktemp -d)
trap 'rm -rf --one-file-system "$root"' EXIT
echo "base-image: $release from $mirror"
# Python is for the unmodified grpcio server and client of the story.
debootstrap --variant=minbase --include=ca-certificates,libstdc++6,python3-minimal,python3 \
  "$release" "$root/base" "$mirror" >"$root/log" 2>&1 ||
  { tail -20 "$root/log" >&2; exit 1; }
rm -rf "$root"/base/var/cache/apt/* "$root"/base/var/lib/apt/lists/* \
  "$root"/base/usr/share/{doc,man,locale}/*
tar --create --numeric-owner --directory "$root/base" . | docker import - "$image" >/dev/null
echo "base-image: $image is made"
