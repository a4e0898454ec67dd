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
#   nginx        NGINX
#   erlang       ERLANG_ROOT, ERLANG_BIN (with erlexec and epmd), ERLANG_CODE
#   go-plugin    GO_PLUGIN
#   ray          RAY_PYTHON, an interpreter that has Ray
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${BH_PEERS_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/blackhole/peers}
who="bench peers"
source "$here/../../scripts/prepared.sh"

prepare_nats() {
    go_program nats-server "$here/nats" github.com/nats-io/nats-server/v2
    echo "NATS_SERVER=$cache/bin/nats-server"
}

# unpacked PACKAGE...: packages of a Debian system, below $cache/PACKAGE of the first of them.
unpacked() {
    local name=$1 aside
    [[ -f $cache/$name.stamp ]] && return
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null ||
        fail "$name is not installed, and there is no apt-get to fetch it with"
    say "fetching $*"
    aside=$(mktemp -d "$cache/.$name.XXXXXX")
    (cd "$aside" && apt-get download "$@" >&2) || {
        # Lists may be older than the archive.
        apt-get update >&2 || true
        (cd "$aside" && apt-get download "$@" >&2) ||
            { rm -rf "$aside"; fail "apt-get could not download $*; see above"; }
    }
    for package in "$aside"/*.deb; do dpkg-deb -x "$package" "$aside/root"; done
    rm -rf "${cache:?}/$name"
    mv "$aside/root" "$cache/$name"
    rm -rf "$aside"
    touch "$cache/$name.stamp"
}

# The system's own, where there is one: it needs nothing more.
prepare_nginx() {
    local program
    if ! program=$(PATH=$PATH:/usr/sbin command -v nginx); then
        unpacked nginx
        program=$cache/nginx/usr/sbin/nginx
    fi
    "$program" -V 2>&1 | grep -q http_v2_module || fail "$program does not run, or lacks HTTP/2"
    echo "NGINX=$program"
}

prepare_erlang() {
    local root bin wanted
    if command -v erl >/dev/null; then
        root=$(erl -noinput -noshell -eval 'io:format("~s", [code:root_dir()]), halt().')
    else
        unpacked erlang-base
        root=$cache/erlang-base/usr/lib/erlang
    fi
    bin=$(echo "$root"/erts-*/bin)
    export ROOTDIR=$root BINDIR=$bin EMU=beam PROGNAME=erl
    wanted=$(fingerprint "$bin" "$here"/erlang/*.erl)
    if ! up_to_date erlang "$wanted"; then
        say "compiling calls.erl"
        mkdir -p "$cache/erlang"
        "$bin/erlexec" -noinput -noshell -eval "
            Made = compile:file(\"$here/erlang/calls\", [{outdir, \"$cache/erlang\"}, report]),
            halt(case Made of {ok, _} -> 0; _ -> 1 end)." >&2 || fail "Erlang does not run; see above"
        echo "$wanted" >"$cache/erlang.stamp"
    fi
    echo "ERLANG_ROOT=$root"
    echo "ERLANG_BIN=$bin"
    echo "ERLANG_CODE=$cache/erlang"
}

prepare_go-plugin() {
    go_program go-plugin "$here/go-plugin" .
    echo "GO_PLUGIN=$cache/bin/go-plugin"
}

prepare_ray() {
    local python wanted
    python=$(find_python)
    wanted=$(fingerprint "$("$python" --version) $python" "$here/ray/requirements.txt")
    if ! up_to_date ray "$wanted"; then
        say "installing Ray for $("$python" --version)"
        rm -rf "$cache/ray" "$cache/ray.stamp"
        "$python" -m venv "$cache/ray"
        "$cache/ray/bin/python" -m pip install --quiet --disable-pip-version-check \
            --requirement "$here/ray/requirements.txt" >&2 || fail "pip could not install Ray"
        echo "$wanted" >"$cache/ray.stamp"
    fi
    echo "RAY_PYTHON=$cache/ray/bin/python"
}

alone
for one in "$@"; do
    case $one in
    nats | nginx | erlang | go-plugin | ray) "prepare_$one" ;;
    *) fail "there is no $one to prepare" ;;
    esac
done
