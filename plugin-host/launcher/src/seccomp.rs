//! The system-call filter: an allow-list, and above it a list of what is denied whatever else.
//!
//! A filter knows one answer for what is listed and one for the rest, so there are two, stacked.
//! The kernel asks both and takes the severest answer; of two errors it takes that of the filter
//! that was installed last. So the allow-list (unknown → ENOSYS) goes first and the denials
//! (→ EPERM) last. ENOSYS for what is unknown, because programs then take the older way, as the C
//! library does for `clone3`, whose flags lie in memory where no filter can read them.
//!
//! A system call of another architecture ends the process; x32 calls have their own numbers and
//! are on no list.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompRule};
use tree::{Answer, ret};

use crate::{
    jail::{Layer, Refusal},
    spec::Internet,
};

/// A system call and why it is on its list.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), expect(dead_code, reason = "names and reasons are for readers and tests"))]
struct Call {
    number: i64,
    name: &'static str,
    why: &'static str,
}

/// `SYS_name: "reason"`, comma-separated.
macro_rules! calls {
    ($($name:ident: $why:literal),* $(,)?) => {
        [$(Call { number: libc::$name, name: stringify!($name), why: $why }),*]
    };
}

mod allowed;
mod denied;
mod tree;

/// A question about one argument, compared as the kernel reads it: 32 bits.
#[derive(Debug, Clone, Copy)]
enum Test {
    /// Argument, value.
    Is(u8, u64),
    /// Argument, value.
    Not(u8, u64),
    /// Argument, mask, value under the mask.
    Bits(u8, u64, u64),
}

/// A system call that is denied where all tests of one line hold.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(not(test), expect(dead_code, reason = "names and reasons are for readers and tests"))]
struct Denial {
    number: i64,
    name: &'static str,
    when: &'static [&'static [Test]],
    why: &'static str,
}

const LAYER: &str = "seccomp";

/// What the kernel calls this architecture, source: `linux/audit.h`.
#[cfg(target_arch = "x86_64")]
const AUDIT: u32 = 0xc000_003e;
/// As above.
#[cfg(target_arch = "aarch64")]
const AUDIT: u32 = 0xc000_00b7;

/// Both filters, ready to install: in the order of installation.
pub(crate) struct Filters([BpfProgram; 2]);

impl Filters {
    /// Compiles the filters for a program with these internet sockets.
    pub(crate) fn compile(internet: Internet) -> Result<Self, seccompiler::BackendError> {
        Ok(Self([allow_list(), denials(internet)?]))
    }

    /// Installs them on this process and all that follow from it. Needs no-new-privileges.
    pub(crate) fn install(&self) -> Result<(), Refusal> {
        for filter in &self.0 {
            seccompiler::apply_filter(filter)
                .layer(LAYER, "install the filter")
                .map_err(|refusal| refusal.advise(ADVICE))?;
        }
        Ok(())
    }
}

pub(crate) const ADVICE: &str = "use a kernel with CONFIG_SECCOMP_FILTER, or set the operator \
     policy `plugins.seccomp: off`";

/// Compiles, as a layer.
pub(crate) fn prepare(internet: Internet) -> Result<Filters, Refusal> {
    Filters::compile(internet).layer(LAYER, "compile the filter")
}

fn allow_list() -> BpfProgram {
    let calls = allowed::EVERYWHERE.iter().chain(allowed::ARCHITECTURE);
    let answers = calls.map(|call| (call.number as u32, vec![ret(ALLOW)])).collect();
    tree::program(AUDIT, &answers, errno(libc::ENOSYS))
}

fn denials(internet: Internet) -> Result<BpfProgram, seccompiler::BackendError> {
    let denied = ret(errno(libc::EPERM));
    let mut answers: BTreeMap<u32, Answer> = denied::ALWAYS
        .iter()
        .chain(denied::ARCHITECTURE)
        .map(|call| (call.number as u32, vec![denied.clone()]))
        .collect();
    let further = match internet {
        Internet::Any => &[][..],
        Internet::Listen(_) => denied::STREAMS_ONLY,
        Internet::None => denied::NO_INTERNET,
    };
    for denial in denied::SOMETIMES {
        let more = if denial.number == libc::SYS_socket { further } else { &[] };
        let mut answer = Answer::new();
        for line in denial.when.iter().chain(more) {
            // What does not hold goes on after the return.
            answer.extend(BpfProgram::from(rule(line)?));
            answer.push(denied.clone());
        }
        answer.push(ret(ALLOW));
        answers.insert(denial.number as u32, answer);
    }
    Ok(tree::program(AUDIT, &answers, ALLOW))
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;

fn errno(number: libc::c_int) -> u32 {
    libc::SECCOMP_RET_ERRNO | number as u32
}

fn rule(line: &[Test]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = line.iter().map(|test| {
        let (argument, operator, value) = match *test {
            Test::Is(argument, value) => (argument, SeccompCmpOp::Eq, value),
            Test::Not(argument, value) => (argument, SeccompCmpOp::Ne, value),
            Test::Bits(argument, mask, value) => (argument, SeccompCmpOp::MaskedEq(mask), value),
        };
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)
    });
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests;
