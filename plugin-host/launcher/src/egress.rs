//! The way out of a jail's network: a listener on its loopback, which the host accepts on.
//!
//! A socket stays in the network it was made in, whoever holds it. So the host, outside, serves
//! connections that were made inside, and nothing but this descriptor crosses the border.

use std::{
    net::Ipv4Addr,
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, SendFlags, SocketAddrV4, SocketFlags, SocketType, ipproto, sockopt,
};

use crate::{
    control::{self, Report},
    jail::{Layer, Refusal},
};

const LAYER: &str = "egress-proxy";

/// Connections that may wait for the host. It accepts at once unless it has as many as it takes.
const BACKLOG: i32 = 128;

/// Listens on `port` and sends the listener to the host.
pub(crate) fn hand_over(port: u16, control: &OwnedFd) -> Result<(), Refusal> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let tcp = Some(ipproto::TCP);
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, flags, tcp)
        .layer(LAYER, "socket")?;
    sockopt::set_socket_reuseaddr(&socket, true).layer(LAYER, "reuse the port")?;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::LOCALHOST, port))
        .layer(LAYER, &format!("bind port {port} of the jail's loopback"))?;
    rustix::net::listen(&socket, BACKLOG).layer(LAYER, "listen")?;
    let descriptor = Some(socket.as_fd());
    control::send(control, &Report::Egress, descriptor, SendFlags::empty())
        .layer(LAYER, "tell the host")
}
