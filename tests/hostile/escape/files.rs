//! Ways to files that are not the plugin's.

use super::{
    Attack,
    Layer::{Landlock, Launcher, Namespaces, Seccomp},
};

const HIDDEN: &[&str] = &["ENOENT", "EACCES"];
const UNWRITABLE: &[&str] = &["EROFS", "EACCES", "ENOENT"];

pub(super) const ATTACKS: &[Attack] = &[
    Attack::root("read `/etc/shadow`", "read /etc/shadow")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock]),
    Attack::root("the same by a symbolic link", "read-by-symlink /etc/shadow {scratch}")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock]),
    Attack::root("the same by a hard link", "read-by-hardlink /etc/shadow {scratch}")
        .refused(&["ENOENT", "EACCES", "EXDEV"])
        .by(&[Namespaces, Landlock]),
    Attack::root("the same by a bind mount", "read-by-bind /etc/shadow {scratch}")
        .by(&[Namespaces, Seccomp, Landlock]),
    Attack::root("the same by `/proc/self/root`", "read /proc/self/root/etc/shadow")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock]),
    Attack::root(
        "the same upwards from `/proc/self/cwd`",
        "read /proc/self/cwd/../../../../../../../../etc/shadow",
    )
    .refused(HIDDEN)
    .by(&[Namespaces, Landlock]),
    Attack::root("the same by `/proc/1/root`", "read /proc/1/root/etc/shadow")
        .outside("read /proc/{node-pid}/root/etc/shadow")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock]),
    Attack::root("a file by its number (`open_by_handle_at`)", "read-by-handle /usr/bin/true")
        .refused(&["EPERM", "EOPNOTSUPP"])
        .by(&[Namespaces, Seccomp]),
    Attack::same("read the node's private key", "read {key}")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock]),
    Attack::same("list the node's data", "list {data}").refused(HIDDEN).by(&[Namespaces, Landlock]),
    Attack::same("list the node's run directory", "list {run}")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock]),
    Attack::same("read another plugin's files", "read {sibling-file}")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock]),
    Attack::same("list home directories", "list /home").refused(HIDDEN).by(&[Namespaces, Landlock]),
    Attack::root("write into the system", "create /usr")
        .refused(UNWRITABLE)
        .by(&[Namespaces, Landlock]),
    Attack::root("write into `/etc`", "create /etc")
        .refused(UNWRITABLE)
        .by(&[Namespaces, Landlock]),
    Attack::root("write into its own program's directory", "create {own}")
        .refused(UNWRITABLE)
        .by(&[Namespaces, Landlock]),
    Attack::root("overwrite its own manifest", "open-to-write {own}/plugin.yaml")
        .refused(UNWRITABLE)
        .by(&[Namespaces, Landlock]),
    Attack::root("overwrite the host's program by `/proc/1/exe`", "open-to-write /proc/1/exe")
        .outside("open-to-write /proc/{node-pid}/exe")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock]),
    Attack::root(
        "`core_pattern`: a program that the kernel starts",
        "open-to-write {core-pattern}",
    )
    .refused(UNWRITABLE)
    .by(&[Namespaces, Landlock]),
    Attack::root("`sysrq-trigger`", "open-to-write /proc/sysrq-trigger")
        .refused(UNWRITABLE)
        .by(&[Namespaces, Landlock])
        .absent(&["ENOENT"]),
    Attack::root("`release_agent`: mount a control group hierarchy", "mount-cgroup {scratch}")
        .by(&[Namespaces, Seccomp, Landlock])
        .absent(&["ENODEV"]),
    Attack::same("look for control groups", "list /sys/fs/cgroup")
        .refused(HIDDEN)
        .by(&[Namespaces]),
    Attack::root("mount a file system", "mount-tmpfs {scratch}")
        .by(&[Namespaces, Seccomp, Landlock]),
    Attack::root("mount by the newer calls (`fsopen`)", "fsopen").by(&[Namespaces, Seccomp]),
    Attack::root("copy a tree of mounts (`open_tree`)", "open-tree /usr")
        .by(&[Namespaces, Seccomp]),
    Attack::root("unmount what covers a secret", "umount {scratch}")
        .by(&[Namespaces, Seccomp, Landlock]),
    Attack::root("`chroot`", "chroot {scratch}").by(&[Namespaces, Seccomp]),
    Attack::root("`pivot_root`", "pivot-root {scratch}").by(&[Namespaces, Seccomp, Landlock]),
    Attack::root("make a device", "mknod {scratch}")
        .refused(&["EPERM", "EACCES"])
        .by(&[Namespaces, Landlock]),
    Attack::root("read the kernel's log from `/dev/kmsg`", "read /dev/kmsg")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock])
        .absent(&["ENOENT"]),
    Attack::root("open the console", "terminal /dev/console")
        .refused(HIDDEN)
        .by(&[Namespaces, Landlock])
        .absent(&["ENOENT"]),
    Attack::new(
        "become root by a set-uid program",
        "set-uid {own}/set-uid",
        super::Control::Ordinary,
    )
    .by(&[Launcher, Namespaces]),
];
