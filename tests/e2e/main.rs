//! Real processes do what the README says, and refuse what it says they refuse.
//!
//! Every test starts its own nodes in its own directory on ports the kernel chooses, so that all
//! of them can run side by side. A test that fails prints the last lines of its nodes and keeps
//! their directory; `BH_KEEP=1` keeps all.

#![forbid(unsafe_code)]

mod calls;
mod command;
mod config;
mod conformance;
mod contract;
mod crash;
mod dialects;
mod foreign;
mod identity;
mod idle;
mod interop;
mod loading;
mod mesh;
mod observe;
mod pressure;
mod relay;
mod routing;
mod services;
mod start;
mod supervision;
mod support;
mod telemetry;
mod web;
