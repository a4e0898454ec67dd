//! Every way a command can end, as exit code, sentence and hint. The one place where failures of
//! the admin API become exit codes.

use std::{error::Error, fmt, process::ExitCode};

use tonic::{Code, Status};

/// How the process ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// What was asked for was done.
    Ok = 0,
    /// It was tried and failed.
    Failed = 1,
    /// The command line makes no sense.
    Usage = 2,
    /// No node answers.
    Unreachable = 3,
    /// The node knows no such plugin, service, method or peer; or there is no such file.
    NotFound = 4,
    /// `health` or `doctor` found something wrong.
    Unhealthy = 5,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// The exit codes as `--help` tells them.
pub const EXIT_CODES: &str = "Exit codes:
  0  done
  1  tried, and failed
  2  the command line makes no sense
  3  no node answers at the admin socket
  4  no such plugin, service, method, peer or file
  5  `health` or `doctor` found something wrong";

/// A command that did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failed {
    /// The exit code it leads to.
    pub exit: Exit,
    /// What went wrong; empty when there is nobody left to tell.
    pub message: String,
    /// What to do about it, where that is known.
    pub hint: Option<String>,
    /// The gRPC status code, where a call ended with one.
    pub code: Option<&'static str>,
}

impl Failed {
    /// A plain failure, exit code 1.
    pub fn new(message: impl Into<String>) -> Self {
        Self::with(Exit::Failed, message)
    }

    /// A failure with an exit code of its own.
    pub fn with(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), hint: None, code: None }
    }

    /// The command line makes no sense, exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::with(Exit::Usage, message)
    }

    /// There is no such thing, exit code 4.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::with(Exit::NotFound, message)
    }

    /// Whoever read the output has closed it: not an error, and nobody to tell.
    pub fn reader_gone() -> Self {
        Self::with(Exit::Ok, "")
    }

    /// The same failure with advice.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// A request to the admin API that ended with `status`.
    pub fn admin(status: &Status) -> Self {
        if lost_the_node(status) {
            return Self::with(Exit::Unreachable, "the node ended the connection")
                .hint("`blackhole status` tells whether it still runs");
        }
        let message = status.message();
        let mut failed = match status.code() {
            Code::NotFound => Self::not_found(or_code(message, status.code())),
            Code::Unimplemented => Self::new("the running node does not know this command")
                .hint("it runs another version: compare `blackhole status` with --version"),
            code => Self::new(or_code(message, code)),
        };
        failed.code = Some(code_name(status.code()));
        failed
    }

    /// A call to a service of the mesh that ended with `status`.
    pub fn call(status: &Status, service: &str) -> Self {
        if lost_the_node(status) {
            return Self::admin(status);
        }
        let code = code_name(status.code());
        let mut failed = Self::new(format!("{code}: {}", status.message()));
        failed.code = Some(code);
        failed.hint = hint_for(status, service);
        failed
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl Error for Failed {}

/// A status made on this side because the connection to the node is gone.
pub fn lost_the_node(status: &Status) -> bool {
    // A deadline that passed on this side is told as a failure of the transport, too.
    if status.code() == Code::Cancelled {
        return false;
    }
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.is::<tonic::transport::Error>() || error.is::<std::io::Error>() {
            return true;
        }
        cause = error.source();
    }
    false
}

fn or_code(message: &str, code: Code) -> String {
    if message.is_empty() { code_name(code).into() } else { message.into() }
}

fn hint_for(status: &Status, service: &str) -> Option<String> {
    match status.code() {
        Code::Unavailable => Some(format!(
            "`blackhole services` lists what the mesh offers; \
             `blackhole explain {service}` says what would be chosen, and why"
        )),
        Code::Unimplemented => {
            Some(format!("`blackhole describe {service}` lists the methods it has"))
        }
        Code::DeadlineExceeded => Some("give it more time with --timeout".into()),
        _ => None,
    }
}

/// A status code's name as the gRPC documents write it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_node_does_not_know_is_exit_code_four() {
        let failed = Failed::admin(&Status::not_found("no plugin is called `x`"));
        assert_eq!(failed.exit, Exit::NotFound);
        assert_eq!(failed.message, "no plugin is called `x`");
    }

    #[test]
    fn a_service_nobody_offers_points_to_the_list_of_services() {
        let status = Status::unavailable("service demo.v1.Nothing not available");
        let failed = Failed::call(&status, "demo.v1.Nothing");
        assert_eq!(failed.exit, Exit::Failed);
        assert_eq!(failed.message, "UNAVAILABLE: service demo.v1.Nothing not available");
        assert!(failed.hint.is_some_and(|hint| hint.contains("blackhole services")));
    }

    #[test]
    fn a_lost_connection_is_not_taken_for_an_answer() {
        let broken = std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        let failed = Failed::admin(&Status::from_error(Box::new(broken)));
        assert_eq!(failed.exit, Exit::Unreachable);
    }
}
