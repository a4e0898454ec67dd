//! Failing where a test asked: a panic with every cause, so that the world it asked about is kept.

use std::fmt::Display;

/// The value, or the end of the test.
pub trait Must<T> {
    /// The value; panics with the error and its causes at the caller's line.
    #[track_caller]
    fn must(self) -> T;
}

impl<T, E: Display> Must<T> for Result<T, E> {
    #[track_caller]
    fn must(self) -> T {
        match self {
            Ok(value) => value,
            Err(error) => panic!("{error:#}"),
        }
    }
}
