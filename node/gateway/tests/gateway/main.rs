//! The gateway over real sockets, with real clients, in front of providers of the tests.

mod calls;
mod demo;
mod get;
mod hostile;
mod http;
mod mesh;
mod one_port;
mod socket;
mod socket_time;
mod support;
mod web;
