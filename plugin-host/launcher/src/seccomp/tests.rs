use std::collections::BTreeSet;

use super::*;

/// What a filter sees of a call, source: `struct seccomp_data`, seccomp(2).
struct Data {
    number: i64,
    arguments: [u64; 6],
}

fn call(number: i64) -> Data {
    Data { number, arguments: [0; 6] }
}

fn with(number: i64, arguments: &[(usize, u64)]) -> Data {
    let mut data = call(number);
    for (at, value) in arguments {
        data.arguments[*at] = *value;
    }
    data
}

impl Data {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number as u32,
            4 => AUDIT,
            8 | 12 => 0,
            _ => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
            }
        }
    }
}

fn run(program: &BpfProgram, data: &Data) -> u32 {
    run_counting(program, data).0
}

/// Runs a filter as the kernel does; only the instructions that occur. The answer, and how many
/// were run.
fn run_counting(program: &BpfProgram, data: &Data) -> (u32, usize) {
    let (mut at, mut register, mut steps) = (0_usize, 0_u32, 0_usize);
    loop {
        steps += 1;
        let step = &program[at];
        at += 1;
        match u32::from(step.code) {
            libc::BPF_LD_W_ABS => register = data.word(step.k),
            libc::BPF_RET_K => return (step.k, steps),
            libc::BPF_JMP_JA => at += step.k as usize,
            libc::BPF_ALU_AND_K => register &= step.k,
            code => {
                let holds = match code {
                    libc::BPF_JMP_JEQ_K => register == step.k,
                    libc::BPF_JMP_JGT_K => register > step.k,
                    libc::BPF_JMP_JGE_K => register >= step.k,
                    other => panic!("instruction {other:#x} at {}", at - 1),
                };
                at += usize::from(if holds { step.jt } else { step.jf });
            }
        }
    }
}

/// The codes that `libc` has only as parts.
mod libc {
    pub(super) use ::libc::*;
    pub(super) const BPF_LD_W_ABS: u32 = BPF_LD | BPF_W | BPF_ABS;
    pub(super) const BPF_RET_K: u32 = BPF_RET | BPF_K;
    pub(super) const BPF_JMP_JA: u32 = BPF_JMP | BPF_JA;
    pub(super) const BPF_ALU_AND_K: u32 = BPF_ALU | BPF_AND | BPF_K;
    pub(super) const BPF_JMP_JEQ_K: u32 = BPF_JMP | BPF_JEQ | BPF_K;
    pub(super) const BPF_JMP_JGT_K: u32 = BPF_JMP | BPF_JGT | BPF_K;
    pub(super) const BPF_JMP_JGE_K: u32 = BPF_JMP | BPF_JGE | BPF_K;
}

const EPERM: u32 = 0x0005_0000 | ::libc::EPERM as u32;
const ENOSYS: u32 = 0x0005_0000 | ::libc::ENOSYS as u32;

/// Both filters as the kernel combines them: errors before permission, the last filter's first.
fn answer_with(internet: Internet, data: &Data) -> u32 {
    let Filters([allowed, denied]) = Filters::compile(internet).expect("compiles");
    let (first, last) = (run(&allowed, data), run(&denied, data));
    if last == ALLOW { first } else { last }
}

fn answer(data: &Data) -> u32 {
    answer_with(Internet::Any, data)
}

fn allowed_calls() -> impl Iterator<Item = &'static Call> {
    allowed::EVERYWHERE.iter().chain(allowed::ARCHITECTURE)
}

fn denied_calls() -> impl Iterator<Item = &'static Call> {
    denied::ALWAYS.iter().chain(denied::ARCHITECTURE)
}

#[test]
fn each_filter_is_within_the_kernels_bound() {
    for internet in [Internet::Any, Internet::Listen(80), Internet::None] {
        for filter in Filters::compile(internet).expect("compiles").0 {
            // BPF_MAXINSNS.
            assert!(!filter.is_empty() && filter.len() <= 4_096, "{}", filter.len());
            let steps = (0..500).map(|number| run_counting(&filter, &call(number)).1).max();
            assert!(steps.is_some_and(|steps| steps < 80), "a search, not a list: {steps:?}");
        }
    }
}

#[test]
fn every_call_is_on_one_list_once_and_has_a_reason() {
    let mut seen = BTreeSet::new();
    for call in allowed_calls().chain(denied_calls()) {
        assert!(seen.insert(call.number), "{} is listed twice", call.name);
        assert!(!call.why.is_empty(), "{}", call.name);
    }
    let allowed: BTreeSet<i64> = allowed_calls().map(|call| call.number).collect();
    for denial in denied::SOMETIMES {
        assert!(allowed.contains(&denial.number), "{} is not allowed otherwise", denial.name);
        assert!(!denial.why.is_empty() && !denial.when.is_empty(), "{}", denial.name);
    }
}

#[test]
fn what_is_allowed_passes_and_what_is_denied_is_eperm() {
    let sometimes: BTreeSet<i64> = denied::SOMETIMES.iter().map(|denial| denial.number).collect();
    for listed in allowed_calls().filter(|listed| !sometimes.contains(&listed.number)) {
        assert_eq!(answer(&call(listed.number)), ALLOW, "{}", listed.name);
    }
    for listed in denied_calls() {
        assert_eq!(answer(&call(listed.number)), EPERM, "{}", listed.name);
    }
}

#[test]
fn every_other_number_is_enosys() {
    let listed: BTreeSet<i64> =
        allowed_calls().chain(denied_calls()).map(|call| call.number).collect();
    for number in (0..2_000).filter(|number| !listed.contains(number)) {
        assert_eq!(answer(&call(number)), ENOSYS, "{number}");
    }
    assert_eq!(answer(&call(::libc::SYS_clone3)), ENOSYS);
    // x32: the same architecture with a bit in the number.
    for number in [0, 1, 57, 59, 435] {
        assert_eq!(answer(&call(0x4000_0000 | number)), ENOSYS, "x32 {number}");
    }
}

#[test]
fn another_architecture_ends_the_process() {
    // i386 on x86_64, arm on aarch64: the first instructions ask before anything else.
    for filter in Filters::compile(Internet::Any).expect("compiles").0 {
        let kill = filter.iter().find(|step| u32::from(step.code) == libc::BPF_RET_K);
        assert_eq!(kill.map(|step| step.k), Some(0x8000_0000), "KILL_PROCESS comes first");
    }
}

#[test]
fn threads_and_children_are_free_and_namespaces_are_not() {
    // What glibc asks for a thread and for a child.
    for flags in [0x003d_0f00, 0x0120_0011, 0x4111] {
        assert_eq!(answer(&with(::libc::SYS_clone, &[(0, flags)])), ALLOW, "{flags:#x}");
    }
    for flag in [0x1000_0000, 0x0002_0000, 0x2000_0000, 0x4000_0000, 0x0800_0000, 0x0400_0000] {
        let data = with(::libc::SYS_clone, &[(0, flag | 0x11)]);
        assert_eq!(answer(&data), EPERM, "{flag:#x}");
    }
    let cgroup = with(::libc::SYS_clone, &[(0, 0x0200_0011)]);
    assert_eq!(answer(&cgroup), EPERM);
}

#[test]
fn nothing_is_typed_into_terminals() {
    let ioctl = |request| answer(&with(::libc::SYS_ioctl, &[(0, 0), (1, request)]));
    assert_eq!(ioctl(::libc::FIONBIO), ALLOW);
    assert_eq!(ioctl(0x5412), EPERM);
    // The kernel reads 32 bits; a filter that compared 64 would be passed (CVE-2019-10063).
    assert_eq!(ioctl(0x1_0000_5412), EPERM);
    assert_eq!(ioctl(0x541c), EPERM);
}

#[test]
fn sockets_are_unix_tcp_udp_and_the_routing_question() {
    let socket =
        |family, kind, protocol| with(::libc::SYS_socket, &[(0, family), (1, kind), (2, protocol)]);
    for (family, kind, protocol) in
        [(1, 1, 0), (1, 5, 0), (2, 1, 0), (2, 1, 6), (2, 2, 17), (10, 1, 0), (10, 2, 0), (16, 3, 0)]
    {
        assert_eq!(answer(&socket(family, kind, protocol)), ALLOW, "{family} {kind} {protocol}");
    }
    for (family, kind, protocol) in [
        (17, 3, 0),
        (38, 5, 0),
        (40, 1, 0),
        (16, 3, 12),
        (16, 3, 9),
        (2, 1, 132),
        (2, 3, 1),
        (2, 1, 262),
        (10, 1, 132),
        (31, 3, 1),
    ] {
        assert_eq!(answer(&socket(family, kind, protocol)), EPERM, "{family} {kind} {protocol}");
    }
    let flags = 0o2_004_000;
    let listen = Internet::Listen(80);
    assert_eq!(answer_with(listen, &socket(2, 1 | flags, 0)), ALLOW);
    assert_eq!(answer_with(listen, &socket(2, 2 | flags, 0)), EPERM);
    assert_eq!(answer_with(listen, &socket(10, 2, 17)), EPERM);
    assert_eq!(answer_with(Internet::None, &socket(2, 1, 0)), EPERM);
    assert_eq!(answer_with(Internet::None, &socket(10, 1, 0)), EPERM);
    assert_eq!(answer_with(Internet::None, &socket(1, 1, 0)), ALLOW);
    assert_eq!(answer(&with(::libc::SYS_socketpair, &[(0, 1)])), ALLOW);
    assert_eq!(answer(&with(::libc::SYS_socketpair, &[(0, 30)])), EPERM);
}

#[test]
fn own_limits_and_the_question_for_the_personality_are_free() {
    assert_eq!(answer(&call(::libc::SYS_prlimit64)), ALLOW);
    assert_eq!(answer(&with(::libc::SYS_prlimit64, &[(0, 1)])), EPERM);
    assert_eq!(answer(&call(::libc::SYS_personality)), ALLOW);
    assert_eq!(answer(&with(::libc::SYS_personality, &[(0, 0xffff_ffff)])), ALLOW);
    assert_eq!(answer(&with(::libc::SYS_personality, &[(0, 0x0040_0000)])), EPERM);
}
