//! Descriptors that were forgotten, and terminals.

use super::{
    Attack,
    Layer::{Landlock, Launcher, Namespaces, Seccomp},
};

pub(super) const ATTACKS: &[Attack] = &[
    Attack::same("a directory or file that was left open", "inherited")
        .outside("holding / inherited")
        .refused(&["EBADF"])
        .by(&[Launcher]),
    Attack::same("the same in the plugin's own process", "inherited-by parent")
        .outside("holding / inherited-by self")
        .refused(&["EBADF"])
        .by(&[Launcher]),
    Attack::root("type into a terminal (`TIOCSTI`)", "tiocsti")
        .refused(&["ENOENT", "EPERM", "EACCES"])
        .by(&[Namespaces, Seccomp, Landlock]),
    Attack::same("the call itself on whatever is open", "tiocsti-call")
        .refused(&["EPERM", "EACCES"])
        .by(&[Seccomp, Landlock]),
];
