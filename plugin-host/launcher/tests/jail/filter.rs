//! The system-call filter, asked call by call: the test's own executable is shown in the jail and
//! makes the calls by number.

use std::{fmt::Write as _, path::PathBuf, process::Command};

use blackhole_launcher::{Internet, JailSpec};

use crate::world::{Running, output, show, spec};

/// What the probe is to do: system calls, comma-separated, each `number:argument:argument…`.
const CALLS: &str = "BH_TEST_CALLS";

/// The probe: makes the calls that the environment names and prints the errno of each, 0 for
/// success.
#[test]
#[ignore = "run inside a jail by other tests"]
fn probe() {
    let Ok(calls) = std::env::var(CALLS) else { return };
    let mut answers = String::from("errno");
    for call in calls.split(',') {
        let mut numbers = call.split(':').map(|word| word.parse::<i64>().expect("a number"));
        let number = numbers.next().expect("a number");
        let mut arguments = [0_i64; 6];
        for (argument, value) in arguments.iter_mut().zip(numbers) {
            *argument = value;
        }
        let of = arguments;
        // SAFETY: the tests name calls whose pointers are null or that fail before they look.
        let result = unsafe { libc::syscall(number, of[0], of[1], of[2], of[3], of[4], of[5]) };
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
        write!(answers, " {}", if result < 0 { errno } else { 0 }).expect("text");
    }
    println!("{answers} end");
}

/// The errno of each call inside a jail like `spec`.
fn errno_of(mut spec: JailSpec, calls: &[Call]) -> Vec<i32> {
    let this = std::env::current_exe().expect("known");
    let directory = this.parent().expect("a directory").to_str().expect("text");
    spec.root.binds.push(show(directory));
    let own = |bind: &mut blackhole_launcher::Bind| bind.own = true;
    spec.root.binds.last_mut().map(own);
    spec.argv = arguments(this.to_str().expect("text"));
    spec.env.push((CALLS.into(), words(calls)));
    answers(&output(&spec))
}

fn errno_outside(calls: &[Call]) -> Vec<i32> {
    errno_by(Command::new, calls)
}

/// The errno of each call outside, in a process that is started as `command` of the program says.
pub fn errno_by(command: impl Fn(PathBuf) -> Command, calls: &[Call]) -> Vec<i32> {
    let this = std::env::current_exe().expect("known");
    let arguments = arguments(this.to_str().expect("text"));
    let output = command(this.clone())
        .args(&arguments[1..])
        .env(CALLS, words(calls))
        .output()
        .expect("runs");
    answers(&String::from_utf8_lossy(&output.stdout))
}

fn arguments(this: &str) -> Vec<String> {
    [this, "--ignored", "--exact", "filter::probe", "--nocapture"].map(String::from).to_vec()
}

fn words(calls: &[Call]) -> String {
    let word = |call: &Call| {
        let arguments = call.1.iter().map(|argument| format!(":{argument}"));
        format!("{}{}", call.0, arguments.collect::<String>())
    };
    calls.iter().map(word).collect::<Vec<_>>().join(",")
}

fn answers(text: &str) -> Vec<i32> {
    let (_, rest) = text.split_once("errno").unwrap_or_else(|| panic!("no answer: {text}"));
    let (numbers, _) = rest.split_once("end").expect("whole");
    numbers.split_whitespace().map(|word| word.parse().expect("a number")).collect()
}

// As arguments, source: `linux/socket.h`, `linux/net.h`.
const UNIX: i64 = 1;
const INET: i64 = 2;
const NETLINK: i64 = 16;
const STREAM: i64 = 1;
const DATAGRAM: i64 = 2;
const RAW: i64 = 3;

/// Number and arguments.
pub type Call = (i64, &'static [i64]);

/// Calls that do nothing, or fail, in another way outside.
const DENIED: &[(&str, Call)] = &[
    ("unshare(CLONE_FS)", (libc::SYS_unshare, &[0x200])),
    ("setns", (libc::SYS_setns, &[-1, 0])),
    ("mount", (libc::SYS_mount, &[])),
    ("umount2", (libc::SYS_umount2, &[])),
    ("chroot", (libc::SYS_chroot, &[])),
    ("fsopen", (libc::SYS_fsopen, &[])),
    ("open_tree", (libc::SYS_open_tree, &[-1, 0, 0])),
    ("move_mount", (libc::SYS_move_mount, &[-1, 0, -1, 0, 0])),
    ("open_by_handle_at", (libc::SYS_open_by_handle_at, &[-1, 0, 0])),
    ("ptrace(TRACEME)", (libc::SYS_ptrace, &[-1])),
    ("process_vm_readv", (libc::SYS_process_vm_readv, &[0x7fff_ffff])),
    ("pidfd_getfd", (libc::SYS_pidfd_getfd, &[-1, 0, 0])),
    ("kcmp", (libc::SYS_kcmp, &[0x7fff_ffff, 0x7fff_ffff])),
    ("bpf", (libc::SYS_bpf, &[-1])),
    ("perf_event_open", (libc::SYS_perf_event_open, &[0, 0, -1, -1, 0])),
    ("userfaultfd", (libc::SYS_userfaultfd, &[-1])),
    ("keyctl", (libc::SYS_keyctl, &[-1])),
    ("add_key", (libc::SYS_add_key, &[])),
    ("io_uring_setup", (libc::SYS_io_uring_setup, &[0, 0])),
    ("io_uring_enter", (libc::SYS_io_uring_enter, &[-1])),
    ("io_uring_register", (libc::SYS_io_uring_register, &[-1])),
    ("kexec_load", (libc::SYS_kexec_load, &[0, 0, 0, -1])),
    ("init_module", (libc::SYS_init_module, &[])),
    ("finit_module", (libc::SYS_finit_module, &[-1])),
    ("delete_module", (libc::SYS_delete_module, &[])),
    ("swapon", (libc::SYS_swapon, &[])),
    ("reboot", (libc::SYS_reboot, &[])),
    ("ioctl(TIOCSTI)", (libc::SYS_ioctl, &[0, 0x5412])),
    ("ioctl(TIOCLINUX)", (libc::SYS_ioctl, &[0, 0x541c])),
    ("ioctl(TIOCSTI with more bits)", (libc::SYS_ioctl, &[0, 0x7_0000_5412])),
    ("socket(AF_PACKET)", (libc::SYS_socket, &[17, 3, 0])),
    ("socket(AF_ALG)", (libc::SYS_socket, &[38, 5, 0])),
    ("socket(AF_VSOCK)", (libc::SYS_socket, &[40, 1, 0])),
    ("socket(NETLINK_NETFILTER)", (libc::SYS_socket, &[16, 3, 12])),
    ("prlimit64 of the first process", (libc::SYS_prlimit64, &[1, 7, 0, 0])),
    ("personality(READ_IMPLIES_EXEC)", (libc::SYS_personality, &[0x0040_0000])),
    ("settimeofday", (libc::SYS_settimeofday, &[])),
];

#[test]
fn every_dangerous_call_is_eperm_inside_and_answers_otherwise_outside() {
    let calls: Vec<Call> = DENIED.iter().map(|(_, call)| *call).collect();
    let inside = errno_of(spec(""), &calls);
    let mut open = spec("");
    open.seccomp = false;
    let unfiltered = errno_of(open, &calls);
    assert_eq!(inside.len(), calls.len());
    let mut telling = 0;
    for (at, (name, _)) in DENIED.iter().enumerate() {
        assert_eq!(inside[at], libc::EPERM, "{name}");
        telling += usize::from(unfiltered[at] != libc::EPERM);
    }
    // Some are refused for want of a capability too; the filter must show in most.
    assert!(telling >= 20, "the control tells of {telling} only: {unfiltered:?}");
}

#[test]
fn what_is_unknown_is_enosys_and_clone3_is_among_it() {
    // A call that is not on the lists and works outside, and one that no kernel has.
    let calls: [Call; 3] =
        [(libc::SYS_clone3, &[0, 0]), (libc::SYS_memfd_secret, &[-1]), (1_999, &[])];
    assert_eq!(errno_of(spec(""), &calls), [libc::ENOSYS; 3]);
    let outside = errno_outside(&calls);
    assert_eq!(outside[0], libc::EINVAL, "the control has clone3");
}

#[test]
fn what_programs_need_is_left_to_them() {
    let calls: [Call; 6] = [
        (libc::SYS_getpid, &[]),
        (libc::SYS_socket, &[UNIX, STREAM, 0]),
        (libc::SYS_socket, &[INET, STREAM, 0]),
        (libc::SYS_socket, &[NETLINK, RAW, 0]),
        (libc::SYS_epoll_create1, &[0]),
        (libc::SYS_prlimit64, &[0, 7, 0, 0]),
    ];
    assert_eq!(errno_of(spec(""), &calls), [0; 6]);
}

#[test]
fn a_plugin_without_network_on_a_shared_network_gets_no_internet_sockets() {
    let tcp: Call = (libc::SYS_socket, &[INET, STREAM, 0]);
    let udp: Call = (libc::SYS_socket, &[INET, DATAGRAM, 0]);
    let mut none = spec("");
    none.internet = Internet::None;
    assert_eq!(errno_of(none, &[tcp, udp]), [libc::EPERM; 2]);
    let mut listen = spec("");
    listen.internet = Internet::Listen(8_080);
    assert_eq!(errno_of(listen, &[tcp, udp]), [0, libc::EPERM]);
    assert_eq!(errno_of(spec(""), &[tcp, udp]), [0, 0]);
}

#[test]
fn the_filter_can_be_left_out_and_then_is_not_named() {
    let mut open = spec("grep ^Seccomp: /proc/self/status");
    open.seccomp = false;
    let mut running = Running::start(&open);
    let layers = running.started();
    assert!(!layers.iter().any(|layer| layer == "seccomp"), "{layers:?}");
    assert_eq!(running.finish().0, "Seccomp:\t0\n");
    assert_eq!(output(&spec("grep ^Seccomp: /proc/self/status")), "Seccomp:\t2\n");
}
