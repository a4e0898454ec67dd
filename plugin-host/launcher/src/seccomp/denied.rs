//! The system calls that fail with EPERM whatever else is allowed, each with what it would open.
//! EPERM and not ENOSYS: a program must not take another way to the same end, and whoever reads a
//! trace sees that it was refused.

use super::{Call, Denial, Test};

/// Denied with any argument, on every architecture.
pub(super) const ALWAYS: &[Call] = &calls! {
    // Around this filter.
    SYS_io_uring_setup: "its requests pass no system-call filter: sockets would be free",
    SYS_io_uring_enter: "as io_uring_setup",
    SYS_io_uring_register: "as io_uring_setup",
    // Other namespaces, other roots.
    SYS_unshare: "new namespaces, and in a user namespace all capabilities",
    SYS_setns: "the namespaces of others",
    SYS_mount: "what hides or shows files",
    SYS_umount2: "what was covered comes back",
    SYS_pivot_root: "another root",
    SYS_chroot: "another root",
    SYS_open_tree: "mounts by descriptor",
    SYS_move_mount: "mounts by descriptor",
    SYS_fsopen: "mounts by descriptor",
    SYS_fsconfig: "mounts by descriptor",
    SYS_fsmount: "mounts by descriptor",
    SYS_fspick: "mounts by descriptor",
    SYS_mount_setattr: "read-only mounts made writable",
    SYS_open_by_handle_at: "files by number, past every directory: the way out of early containers",
    SYS_name_to_handle_at: "the numbers for open_by_handle_at",
    // Other processes.
    SYS_ptrace: "the memory and the system calls of others",
    SYS_process_vm_readv: "the memory of others",
    SYS_process_vm_writev: "the memory of others",
    SYS_process_madvise: "the memory of others",
    SYS_process_mrelease: "the memory of others",
    SYS_pidfd_getfd: "the descriptors of others",
    SYS_kcmp: "what others have open, hence where the kernel keeps it",
    SYS_move_pages: "the memory of others",
    SYS_migrate_pages: "the memory of others",
    // The kernel's least tested doors.
    SYS_bpf: "programs in the kernel",
    SYS_perf_event_open: "counters that tell of others; a long history of holes",
    SYS_userfaultfd: "a pause in the midst of the kernel's copying: the tool of most exploits",
    SYS_keyctl: "keys of the whole user, not of a namespace",
    SYS_add_key: "keys of the whole user",
    SYS_request_key: "keys of the whole user; starts a program outside",
    SYS_fanotify_init: "what others open",
    SYS_fanotify_mark: "what others open",
    SYS_lookup_dcookie: "names of files of others",
    SYS_remap_file_pages: "no program needs it; a history of holes",
    SYS_vmsplice: "own pages lent to the kernel: a history of holes, and few users",
    // The machine.
    SYS_kexec_load: "another kernel",
    SYS_kexec_file_load: "another kernel",
    SYS_init_module: "code in the kernel",
    SYS_finit_module: "code in the kernel",
    SYS_delete_module: "code out of the kernel",
    SYS_swapon: "memory on a device",
    SYS_swapoff: "memory off a device",
    SYS_reboot: "the end of the machine",
    SYS_acct: "records of all processes",
    SYS_quotactl: "quotas",
    SYS_quotactl_fd: "quotas",
    SYS_nfsservctl: "a server in the kernel",
    SYS_syslog: "the kernel's log: addresses, names",
    SYS_settimeofday: "the clock of all",
    SYS_clock_settime: "the clock of all",
    SYS_clock_adjtime: "the clock of all",
    SYS_adjtimex: "the clock of all",
    SYS_sethostname: "the host's name",
    SYS_setdomainname: "the domain's name",
    SYS_vhangup: "the terminals of others",
    SYS_setgroups: "other groups; without a capability it fails anyway, and programs expect EPERM",
};

/// Denied with any argument, on this architecture.
#[cfg(target_arch = "x86_64")]
pub(super) const ARCHITECTURE: &[Call] = &calls! {
    SYS_modify_ldt: "segments of 16 bits: a history of holes",
    SYS_iopl: "hardware",
    SYS_ioperm: "hardware",
    SYS_uselib: "libraries the oldest way: a history of holes",
    SYS_ustat: "file systems of others",
    SYS_sysfs: "kinds of file systems; no program needs it",
    SYS__sysctl: "the kernel's settings",
};

/// This architecture has none of its own.
#[cfg(target_arch = "aarch64")]
pub(super) const ARCHITECTURE: &[Call] = &[];

/// A terminal's number for "put these bytes into my input", source: ioctl_tty(2).
const TIOCSTI: u64 = 0x5412;
/// A console's selection and paste, which does the same, source: ioctl_console(2).
const TIOCLINUX: u64 = 0x541c;

/// What `personality` answers without changing anything.
const ASK_PERSONALITY: u64 = 0xffff_ffff;

const fn number(family: libc::c_int) -> u64 {
    family as u64
}

const UNIX: u64 = number(libc::AF_UNIX);
const NETLINK: u64 = number(libc::AF_NETLINK);
const INET: u64 = number(libc::AF_INET);
const INET6: u64 = number(libc::AF_INET6);
const TCP: u64 = number(libc::IPPROTO_TCP);
const UDP: u64 = number(libc::IPPROTO_UDP);
const ROUTE: u64 = number(libc::NETLINK_ROUTE);

/// The part of a socket's type that is no flag, source: `SOCK_TYPE_MASK` of the kernel.
const TYPE_BITS: u64 = 0xf;

const fn bit(flag: libc::c_int) -> [Test; 1] {
    [Test::Bits(0, flag as u64, flag as u64)]
}

/// Denied with these arguments.
pub(super) const SOMETIMES: &[Denial] = &[
    Denial {
        number: libc::SYS_clone,
        name: "clone",
        when: &[
            &bit(libc::CLONE_NEWUSER),
            &bit(libc::CLONE_NEWNS),
            &bit(libc::CLONE_NEWPID),
            &bit(libc::CLONE_NEWNET),
            &bit(libc::CLONE_NEWIPC),
            &bit(libc::CLONE_NEWUTS),
            &bit(libc::CLONE_NEWCGROUP),
        ],
        why: "new namespaces, and in a user namespace all capabilities",
    },
    Denial {
        number: libc::SYS_ioctl,
        name: "ioctl",
        when: &[&[Test::Is(1, TIOCSTI)], &[Test::Is(1, TIOCLINUX)]],
        why: "commands typed into a terminal that others read (CVE-2017-5226)",
    },
    Denial {
        number: libc::SYS_prlimit64,
        name: "prlimit64",
        when: &[&[Test::Not(0, 0)]],
        why: "the limits of other processes of the same id, the node's among them",
    },
    Denial {
        number: libc::SYS_personality,
        name: "personality",
        when: &[&[Test::Not(0, 0), Test::Not(0, ASK_PERSONALITY)]],
        why: "readable memory that is executable, addresses that are known",
    },
    Denial {
        number: libc::SYS_socket,
        name: "socket",
        when: &[
            &[Test::Not(0, UNIX), Test::Not(0, INET), Test::Not(0, INET6), Test::Not(0, NETLINK)],
            // getifaddrs asks the routing family: glibc for every name it resolves, Go and Node
            // for interfaces. Of the others some lead to packet filters and to audit.
            &[Test::Is(0, NETLINK), Test::Not(2, ROUTE)],
            &[Test::Is(0, INET), Test::Not(2, 0), Test::Not(2, TCP), Test::Not(2, UDP)],
            &[Test::Is(0, INET6), Test::Not(2, 0), Test::Not(2, TCP), Test::Not(2, UDP)],
        ],
        why: "raw packets, virtual machines' sockets, kernel crypto, protocols that load modules",
    },
    Denial {
        number: libc::SYS_socketpair,
        name: "socketpair",
        when: &[&[Test::Not(0, UNIX)]],
        why: "families that nobody uses and that load modules",
    },
];

/// Further, for a program that may use no internet socket.
pub(super) const NO_INTERNET: &[&[Test]] = &[&[Test::Is(0, INET)], &[Test::Is(0, INET6)]];

/// Further, for a program that may only listen: what is not a stream knows no connections that
/// Landlock could refuse.
pub(super) const STREAMS_ONLY: &[&[Test]] = &[
    &[Test::Is(0, INET), Test::Bits(1, TYPE_BITS, libc::SOCK_DGRAM as u64)],
    &[Test::Is(0, INET), Test::Bits(1, TYPE_BITS, libc::SOCK_RAW as u64)],
    &[Test::Is(0, INET6), Test::Bits(1, TYPE_BITS, libc::SOCK_DGRAM as u64)],
    &[Test::Is(0, INET6), Test::Bits(1, TYPE_BITS, libc::SOCK_RAW as u64)],
];
