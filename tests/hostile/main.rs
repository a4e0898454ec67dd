//! Whoever speaks nonsense, or too much, or nothing at all, harms nobody but himself: after every
//! attack the node runs, answers others in time, and has not grown beyond its bounds.

#![forbid(unsafe_code)]

mod bytes;
mod escape;
mod floods;
mod h2;
mod killed;
mod misbehave;
mod victim;
