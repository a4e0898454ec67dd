//! Ways to other machines, and to other programs' sockets. The node under attack lives in a network
//! that has a metadata service and an outside (`attack cloud`).

use super::{
    Attack,
    Layer::{Landlock, Namespaces, Seccomp},
};

const NO_WAY: &[&str] = &["ENETUNREACH", "EPERM"];
const NOBODY: &[&str] = &["ECONNREFUSED", "EPERM"];
const NO_FAMILY: &[&str] = &["EAFNOSUPPORT", "EPROTONOSUPPORT"];
const NO_SOCKET: &[&str] = &["ENOENT", "EACCES"];

pub(super) const ATTACKS: &[Attack] = &[
    Attack::same("a cloud's metadata service", "tcp 169.254.169.254 80")
        .refused(NO_WAY)
        .by(&[Namespaces, Seccomp]),
    Attack::same("the same by UDP", "udp 169.254.169.254 53")
        .refused(NO_WAY)
        .by(&[Namespaces, Seccomp]),
    Attack::same("another machine by TCP", "tcp 203.0.113.1 80")
        .refused(NO_WAY)
        .by(&[Namespaces, Seccomp]),
    Attack::same("another machine by UDP: names, tunnels", "udp 203.0.113.1 53")
        .refused(NO_WAY)
        .by(&[Namespaces, Seccomp]),
    Attack::same("a server on the host's loopback", "tcp 127.0.0.1 7777")
        .refused(NOBODY)
        .by(&[Namespaces, Seccomp]),
    Attack::same("the same by UDP, from loopback", "udp 127.0.0.1 53")
        .refused(NOBODY)
        .by(&[Namespaces, Seccomp]),
    Attack::root("raw packets", "socket raw").by(&[Namespaces, Seccomp]),
    Attack::root("packets below IP (`AF_PACKET`)", "socket packet")
        .by(&[Namespaces, Seccomp])
        .absent(NO_FAMILY),
    Attack::same("the virtual machine's host (`AF_VSOCK`)", "socket vsock")
        .by(&[Seccomp])
        .absent(NO_FAMILY),
    Attack::same("the kernel's cryptography (`AF_ALG`)", "socket alg")
        .by(&[Seccomp])
        .absent(NO_FAMILY),
    Attack::same("device events (netlink)", "socket uevent").by(&[Seccomp]).absent(NO_FAMILY),
    Attack::same("packet filters (netlink)", "socket netfilter").by(&[Seccomp]).absent(NO_FAMILY),
    Attack::root("take a further address", "take-address 10.9.8.7")
        .refused(&["EPERM", "EACCES"])
        .by(&[Namespaces]),
    Attack::same("an abstract socket of the host", "connect-abstract bh-cloud")
        .refused(NOBODY)
        .by(&[Namespaces, Landlock]),
    Attack::same("`docker.sock`, or what lies where it does", "connect {docker}")
        .refused(NO_SOCKET)
        .by(&[Namespaces])
        .perhaps(),
    Attack::same("the node's admin socket", "connect {admin}")
        .refused(NO_SOCKET)
        .by(&[Namespaces])
        .perhaps(),
    Attack::same("another plugin's socket", "connect {sibling-socket}")
        .refused(NO_SOCKET)
        .by(&[Namespaces])
        .perhaps(),
    Attack::same("the mesh in another plugin's name", "connect {sibling-mesh}")
        .refused(NO_SOCKET)
        .by(&[Namespaces])
        .perhaps(),
];
