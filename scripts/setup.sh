#!/usr/bin/env bash
# Installs what the build needs from the system, and says so. Does nothing where all is there.
set -euo pipefail

missing=()
command -v c++ >/dev/null || missing+=(g++)
command -v make >/dev/null || missing+=(make)
# Not libclang-cpp, which is another library: a digit, or `so`, follows the name.
if ! compgen -G '/usr/lib/llvm-*/lib/libclang[-.][0-9s]*' >/dev/null &&
  ! compgen -G '/usr/lib/*/libclang[-.][0-9s]*' >/dev/null; then
  missing+=(libclang-dev)
fi

if ! command -v cargo >/dev/null; then
  echo "cargo is not here: install Rust 1.95 or newer first" >&2
  exit 1
fi

[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
  echo "missing: ${missing[*]}. Install them with this system's package manager, then try again." >&2
  exit 1
fi
sudo=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || { echo "missing: ${missing[*]}. As root: apt-get install ${missing[*]}" >&2; exit 1; }
  sudo=(sudo)
fi
echo "installing with apt: ${missing[*]} (the embedded store is built from C++ sources)"
"${sudo[@]}" apt-get update -qq
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
