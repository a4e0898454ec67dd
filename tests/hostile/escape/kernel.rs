//! Doors of the kernel that no plugin needs.

use super::{
    Attack,
    Layer::{Namespaces, Seccomp},
};

const NO_SUCH_CALL: &[&str] = &["ENOSYS"];
const ASKED: &[&str] = &["EPERM", "ENOSYS"];

pub(super) const ATTACKS: &[Attack] = &[
    Attack::same("`io_uring`: sockets and files past the filter", "io-uring-setup")
        .by(&[Seccomp])
        .absent(&["ENOSYS", "EPERM"]),
    Attack::same("use a ring (`io_uring_enter`)", "io-uring-enter")
        .by(&[Seccomp])
        .absent(NO_SUCH_CALL),
    Attack::root("programs in the kernel (`bpf`)", "bpf")
        .by(&[Seccomp])
        .perhaps()
        .absent(NO_SUCH_CALL),
    Attack::root("`perf_event_open`", "perf-event-open").by(&[Seccomp]).perhaps(),
    Attack::same("`userfaultfd`", "userfaultfd").by(&[Seccomp]).perhaps().absent(NO_SUCH_CALL),
    Attack::same("add a key (`add_key`)", "add-key").by(&[Seccomp]).absent(NO_SUCH_CALL),
    Attack::same("keys of the user (`keyctl`)", "keyctl").by(&[Seccomp]).absent(NO_SUCH_CALL),
    Attack::root("load a kernel module (`init_module`)", "init-module")
        .refused(ASKED)
        .by(&[Namespaces, Seccomp])
        .absent(NO_SUCH_CALL),
    Attack::root("the same from a file (`finit_module`)", "finit-module")
        .refused(ASKED)
        .by(&[Namespaces, Seccomp])
        .absent(NO_SUCH_CALL),
    Attack::root("unload a kernel module", "delete-module")
        .refused(ASKED)
        .by(&[Namespaces, Seccomp])
        .absent(NO_SUCH_CALL),
    Attack::root("start another kernel (`kexec_load`)", "kexec-load")
        .by(&[Namespaces, Seccomp])
        .absent(NO_SUCH_CALL),
    Attack::root("restart the machine (`reboot`)", "reboot").by(&[Namespaces, Seccomp]),
    Attack::root("rename the machine", "sethostname").by(&[Namespaces, Seccomp]),
    Attack::root("set the clock", "set-clock").by(&[Namespaces, Seccomp]),
    Attack::root("swap to a file (`swapon`)", "swapon").by(&[Namespaces, Seccomp]),
    Attack::root("account for all processes (`acct`)", "acct")
        .by(&[Namespaces, Seccomp])
        .absent(NO_SUCH_CALL),
    Attack::root("read the kernel's log (`syslog`)", "kernel-log").by(&[Seccomp]).perhaps(),
    Attack::root("speak to hardware (`iopl`)", "iopl")
        .by(&[Namespaces, Seccomp])
        .absent(NO_SUCH_CALL),
    Attack::same("segments of 16 bits (`modify_ldt`)", "modify-ldt")
        .by(&[Seccomp])
        .absent(NO_SUCH_CALL),
    Attack::root("see what others open (`fanotify`)", "fanotify")
        .by(&[Namespaces, Seccomp])
        .absent(NO_SUCH_CALL),
    Attack::same("known addresses (`personality`)", "personality").by(&[Seccomp]),
];
