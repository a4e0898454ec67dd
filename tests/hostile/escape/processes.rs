//! Ways to other processes, to other ids, and into or out of namespaces.

use super::{
    Attack,
    Layer::{Landlock, Launcher, Namespaces, Seccomp},
};

const NOBODY: &[&str] = &["ESRCH", "EPERM"];
const HIDDEN: &[&str] = &["ENOENT", "EACCES"];
/// Of the kernel's bound on user namespaces, of the filter, of an unknown call.
const NO_USER_NAMESPACE: &[&str] = &["ENOSPC", "EPERM", "ENOSYS"];
const UNMAPPED: &[&str] = &["EPERM", "EINVAL"];

pub(super) const ATTACKS: &[Attack] = &[
    Attack::same("signal the node", "signal {node-pid}")
        .refused(NOBODY)
        .by(&[Namespaces, Landlock]),
    Attack::same("signal another plugin", "signal {sibling-pid}")
        .refused(NOBODY)
        .by(&[Namespaces, Landlock]),
    Attack::same("hold another plugin by a pidfd", "pidfd-open {sibling-pid}")
        .refused(NOBODY)
        .by(&[Namespaces]),
    Attack::same("trace the node (`ptrace`)", "ptrace {node-pid}")
        .refused(NOBODY)
        .by(&[Namespaces, Seccomp, Landlock]),
    Attack::same("trace another plugin", "ptrace {sibling-pid}")
        .refused(NOBODY)
        .by(&[Namespaces, Seccomp, Landlock]),
    Attack::same("trace the first process of the jail", "ptrace 1")
        .outside("ptrace {sibling-pid}")
        .refused(NOBODY)
        .by(&[Namespaces, Seccomp, Landlock]),
    Attack::same("read another plugin's memory", "process-vm-readv {sibling-pid}")
        .refused(NOBODY)
        .by(&[Namespaces, Seccomp, Landlock]),
    Attack::same("read another plugin's environment", "read /proc/{sibling-pid}/environ")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock]),
    Attack::same("read the node's environment", "read /proc/{node-pid}/environ")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock]),
    Attack::same("read the first process's environment", "read /proc/1/environ")
        .outside("read /proc/{sibling-pid}/environ")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock]),
    Attack::same("list the first process's descriptors", "list /proc/1/fd")
        .outside("list /proc/{sibling-pid}/fd")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock]),
    Attack::same("change another plugin's limits", "prlimit {sibling-pid}")
        .refused(NOBODY)
        .by(&[Namespaces, Seccomp]),
    Attack::same("compare itself with another (`kcmp`)", "kcmp {sibling-pid}")
        .refused(NOBODY)
        .by(&[Namespaces, Seccomp, Landlock])
        .absent(&["ENOSYS"]),
    Attack::same("a user namespace of its own (`unshare`)", "unshare user")
        .refused(NO_USER_NAMESPACE)
        .by(&[Namespaces, Seccomp]),
    Attack::same("the same by `clone`", "clone user")
        .refused(NO_USER_NAMESPACE)
        .by(&[Namespaces, Seccomp]),
    Attack::same("the same by `clone3`", "clone3 user")
        .refused(NO_USER_NAMESPACE)
        .by(&[Namespaces, Seccomp]),
    Attack::root("a mount namespace", "unshare mount").by(&[Namespaces, Seccomp]),
    Attack::root("a net namespace", "unshare net").by(&[Namespaces, Seccomp]),
    Attack::root("a pid namespace", "unshare pid").by(&[Namespaces, Seccomp]),
    Attack::root("an ipc namespace", "unshare ipc").by(&[Namespaces, Seccomp]),
    Attack::root("a uts namespace", "unshare uts").by(&[Namespaces, Seccomp]),
    Attack::root("a cgroup namespace", "unshare cgroup").by(&[Namespaces, Seccomp]),
    Attack::root("a time namespace", "unshare time")
        .refused(&["EPERM", "EINVAL"])
        .by(&[Namespaces, Seccomp]),
    Attack::root("a mount namespace by `clone`", "clone mount").by(&[Namespaces, Seccomp]),
    Attack::root("enter a namespace (`nsenter`)", "setns /proc/self/ns/net")
        .by(&[Namespaces, Seccomp]),
    Attack::root("enter those of the first process", "setns /proc/1/ns/net")
        .outside("setns /proc/{node-pid}/ns/net")
        .refused(&["EACCES", "EPERM", "ENOENT"])
        .by(&[Namespaces, Seccomp]),
    Attack::root("enter by a pidfd", "setns-pidfd 1")
        .outside("setns-pidfd {node-pid}")
        .by(&[Namespaces, Seccomp]),
    Attack::root("have any capability", "capabilities"),
    Attack::root("gain a capability", "capset"),
    Attack::root("become root", "setuid-root").refused(UNMAPPED),
    Attack::root("join root's group", "setgid-root").refused(UNMAPPED),
    Attack::root("take further groups", "setgroups").by(&[Namespaces, Seccomp]),
    Attack::root("run before everybody else", "nice").refused(&["EACCES", "EPERM"]),
    Attack::root("run in real time", "real-time"),
    Attack::root("raise its own limits", "raise-limit").by(&[Launcher]),
    Attack::same("shared memory of others (System V)", "shared-memory 1650982913")
        .refused(&["ENOENT", "ENOSYS", "EPERM"])
        .by(&[Namespaces, Seccomp]),
];
