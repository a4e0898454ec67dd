# What scripts have in common that bring foreign programs: sourced, never run. They set `cache`
# (where the programs go) and `who` (the word before what is said).
#
# What is made has a stamp, a fingerprint of all that decides it: what is up to date is left alone.

# The Go that is installed, never one that it would download for itself.
export GOTOOLCHAIN=local GOFLAGS="${GOFLAGS:-} -buildvcs=false"

say() { echo "$who: $*" >&2; }

fail() {
    say "$*"
    exit 1
}

# A fingerprint of files, by content, and of whatever else decides what is made.
fingerprint() {
    local extra=$1
    shift
    { echo "$extra"; cat "$@"; } | sha256sum | cut -d' ' -f1
}

# Whether the stamp says that exactly this was made before.
up_to_date() {
    local stamp=$cache/$1.stamp wanted=$2
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]]
}

# The system's own interpreter first: a jail shows it anyway. It must be able to make environments.
find_python() {
    local python
    for python in /usr/bin/python3 python3; do
        if python=$(command -v "$python") && "$python" -c 'import ensurepip, venv' 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    fail "Python 3 with venv is needed (apt-get install python3 python3-venv)"
}

# go_program NAME DIRECTORY PACKAGE: a program of the module in DIRECTORY, to bin/NAME.
go_program() {
    local name=$1 directory=$2 package=$3 wanted
    command -v go >/dev/null ||
        fail "Go 1.24 or newer is needed for $name (apt-get install golang-go)"
    wanted=$(fingerprint "$(go version) $package" "$directory"/go.* \
        $(find "$directory" -name '*.go'))
    if ! up_to_date "$name" "$wanted" || [[ ! -x $cache/bin/$name ]]; then
        say "building $name with $(go version)"
        (cd "$directory" && CGO_ENABLED=0 go build -o "$cache/bin/.$name.new" "$package") >&2 ||
            fail "$name could not be built with $(go version); Go 1.24 or newer is needed"
        mv "$cache/bin/.$name.new" "$cache/bin/$name"
        echo "$wanted" >"$cache/$name.stamp"
    fi
}

# One run at a time: others wait.
alone() {
    mkdir -p "$cache/bin"
    command -v flock >/dev/null || fail "flock is needed (apt-get install util-linux)"
    exec 9>"$cache/.lock"
    flock --nonblock 9 || { say "another run is at it; waiting"; flock 9; }
}
