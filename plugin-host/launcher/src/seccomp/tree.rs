//! From system-call numbers to answers, as a balanced tree of comparisons.
//!
//! At installation the kernel tries a filter with every number there is, to remember those that
//! are always allowed. A list that is searched from its beginning makes that, and with it each
//! start of a plugin, a millisecond longer.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// What follows once the number is known: instructions that end with a return.
pub(super) type Answer = BpfProgram;

/// Where `struct seccomp_data` has the number and the architecture, source: seccomp(2).
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const IF_AT_LEAST: u32 = libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K;
const SKIP: u32 = libc::BPF_JMP | libc::BPF_JA;

/// A return with `action`.
pub(super) fn ret(action: u32) -> sock_filter {
    step(libc::BPF_RET | libc::BPF_K, 0, 0, action)
}

fn step(code: u32, jt: u8, jf: u8, k: u32) -> sock_filter {
    sock_filter { code: code as u16, jt, jf, k }
}

/// The filter that answers the numbers of `answers` with theirs and all others with `rest`, and
/// ends a process that calls by another architecture than `audit`.
pub(super) fn program(audit: u32, answers: &BTreeMap<u32, Answer>, rest: u32) -> BpfProgram {
    let mut program = vec![
        step(LOAD, 0, 0, ARCHITECTURE),
        step(IF_EQUAL, 1, 0, audit),
        ret(libc::SECCOMP_RET_KILL_PROCESS),
        step(LOAD, 0, 0, NUMBER),
    ];
    program.extend(search(&intervals(answers, &vec![ret(rest)])));
    program
}

/// Where each interval of numbers begins, and its answer; the first begins at 0, and neighbours
/// differ.
fn intervals(answers: &BTreeMap<u32, Answer>, rest: &Answer) -> Vec<(u32, Answer)> {
    let mut intervals: Vec<(u32, Answer)> = Vec::new();
    let mut begin = |number: u32, answer: &Answer| match intervals.last_mut() {
        Some(last) if last.0 == number => last.1.clone_from(answer),
        Some(last) if last.1 == *answer => {}
        _ => intervals.push((number, answer.clone())),
    };
    begin(0, rest);
    for (number, answer) in answers {
        begin(*number, answer);
        begin(number + 1, rest);
    }
    // A replaced beginning may equal its neighbour.
    intervals.dedup_by(|next, before| next.1 == before.1);
    intervals
}

fn search(intervals: &[(u32, Answer)]) -> BpfProgram {
    match intervals {
        [] => Vec::new(),
        [(_, answer)] => answer.clone(),
        _ => {
            let (below, above) = intervals.split_at(intervals.len() / 2);
            let lower = search(below);
            let mut program =
                vec![step(IF_AT_LEAST, 0, 1, above[0].0), step(SKIP, 0, 0, lower.len() as u32)];
            program.extend(lower);
            program.extend(search(above));
            program
        }
    }
}
