//! What every program may count on: a jail that forbids it is broken, however safe.

/// Words for `attack/ordinary.c`; each succeeds outside and inside.
pub(super) const ALLOWED: &[&str] = &[
    "children",
    "programs",
    "threads",
    "memory",
    "compiled-code",
    "events",
    "signals",
    "own-files {scratch}",
    "copying /usr/bin/true",
    "pairs",
    "loopback",
    "facts",
    "socket inet",
    "socket inet6",
    "socket unix",
];
