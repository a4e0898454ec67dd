//! The gateway over real sockets, with real clients, in front of providers of the tests.

mod calls;
mod demo;
mod hostile;
mod http;
mod mesh;
mod support;
mod web;
