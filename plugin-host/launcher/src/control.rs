//! The control socket: one JSON message per packet of a `SOCK_SEQPACKET` pair, descriptors by
//! `SCM_RIGHTS`, the sender's pid by `SCM_CREDENTIALS` where the receiver asked for it.

use std::{
    io::{IoSlice, IoSliceMut},
    mem::MaybeUninit,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::spec::JailSpec;

/// Bytes of one message. A jail spec with hundreds of binds has tens of kilobytes; the kernel's
/// default socket buffer takes twice this.
pub const MESSAGE_BYTES_MAX: usize = 96 * 1024;

/// Descriptors of one message: output, errors, listener.
pub const DESCRIPTORS_MAX: usize = 3;

/// Bytes of an order to the first process of a jail: it keeps no larger buffer.
pub(crate) const ORDER_BYTES_MAX: usize = 256;

/// What the host asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// To the zygote: fork a launcher that obeys the control socket that comes with this.
    Fork,
    /// Build this jail and start its program.
    Launch(Box<JailSpec>),
    /// Connect to this port of the jail's loopback and send the descriptor.
    Connect {
        /// Comes back in the answer.
        id: u64,
        /// TCP port.
        port: u16,
    },
    /// Ask the program to end (SIGTERM).
    Stop,
    /// End everything in the jail at once.
    Kill,
}

/// What the launcher, the jail's first process, or the program before its exec tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// Sent by the launcher as its first word, with a handle of itself: whoever is its parent
    /// reaps it.
    Outside,
    /// Sent by the jail's first process; its credentials name it.
    Init,
    /// Sent by what becomes the program; its credentials name it.
    Program,
    /// The descriptor that comes with this message listens on the jail's loopback, on the port
    /// that [`JailSpec::egress`] names. Sent before [`Report::Started`].
    Egress,
    /// The program was executed, with these layers in force.
    Started {
        /// Names of the layers.
        layers: Vec<String>,
    },
    /// There will be no program: a layer could not be had.
    Refused {
        /// The layer's name.
        layer: String,
        /// What happened.
        reason: String,
        /// What the operator can do; empty where that is not known.
        advice: String,
    },
    /// The descriptor that comes with this message is connected, or connecting.
    Connected {
        /// The order's.
        id: u64,
    },
    /// There is no connection.
    NotConnected {
        /// The order's.
        id: u64,
        /// What the system says.
        reason: String,
    },
    /// The program ended.
    Ended {
        /// Exit status.
        code: Option<i32>,
        /// Signal.
        signal: Option<i32>,
    },
}

/// One received message.
#[derive(Debug)]
pub struct Received<T> {
    /// The message.
    pub message: T,
    /// The descriptors that came with it, at most [`DESCRIPTORS_MAX`].
    pub descriptors: Vec<OwnedFd>,
    /// The sender as seen from here, where the socket was told to pass credentials.
    pub pid: Option<u32>,
}

/// Sends one message, with at most [`DESCRIPTORS_MAX`] descriptors.
pub fn send<'fd>(
    socket: impl AsFd,
    message: &impl Serialize,
    descriptors: impl IntoIterator<Item = BorrowedFd<'fd>>,
    flags: SendFlags,
) -> std::io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(std::io::Error::other(format!(
            "a control message of {} bytes is more than {MESSAGE_BYTES_MAX}",
            bytes.len()
        )));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.into_iter().collect();
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&descriptors)) {
        return Err(std::io::Error::other("more descriptors than one message takes"));
    }
    let flags = flags | SendFlags::NOSIGNAL;
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(&socket, &[IoSlice::new(&bytes)], &mut ancillary, flags)
    })?;
    Ok(())
}

/// Receives one message; `None` when the other end is gone.
pub fn recv<T: DeserializeOwned>(
    socket: impl AsFd,
    flags: RecvFlags,
) -> std::io::Result<Option<Received<T>>> {
    // Memory for what is there, not for what could be: most messages have a few bytes.
    let ask = flags | RecvFlags::PEEK | RecvFlags::TRUNC;
    let (_, bytes) =
        rustix::io::retry_on_intr(|| rustix::net::recv(&socket, &mut [0_u8; 0][..], ask))?;
    if bytes > MESSAGE_BYTES_MAX {
        return Err(std::io::Error::other("a control message was longer than allowed"));
    }
    recv_into(socket, &mut vec![0_u8; bytes], flags)
}

/// Receives one message into `bytes`; a longer one is an error.
pub(crate) fn recv_into<T: DeserializeOwned>(
    socket: impl AsFd,
    bytes: &mut [u8],
    flags: RecvFlags,
) -> std::io::Result<Option<Received<T>>> {
    let mut space =
        [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = flags | RecvFlags::CMSG_CLOEXEC;
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(&socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags)
    })?;
    let mut descriptors = Vec::new();
    let mut pid = None;
    for message in ancillary.drain() {
        match message {
            RecvAncillaryMessage::ScmRights(came) => descriptors.extend(came),
            RecvAncillaryMessage::ScmCredentials(who) => {
                pid = u32::try_from(who.pid.as_raw_nonzero().get()).ok();
            }
            _ => {}
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(std::io::Error::other("a control message was longer than allowed"));
    }
    let message = serde_json::from_slice(&bytes[..received.bytes])?;
    Ok(Some(Received { message, descriptors, pid }))
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .expect("socketpair")
    }

    #[test]
    fn messages_keep_their_bounds_and_their_descriptor() {
        let (near, far) = pair();
        rustix::net::sockopt::set_socket_passcred(&far, true).expect("passcred");
        send(&near, &Order::Connect { id: 1, port: 80 }, None, SendFlags::empty()).expect("sent");
        send(&near, &Order::Stop, Some(near.as_fd()), SendFlags::empty()).expect("sent");
        let first = recv::<Order>(&far, RecvFlags::empty()).expect("read").expect("open");
        assert_eq!(first.message, Order::Connect { id: 1, port: 80 });
        assert_eq!(first.pid, Some(std::process::id()));
        assert!(first.descriptors.is_empty());
        let second = recv::<Order>(&far, RecvFlags::empty()).expect("read").expect("open");
        assert_eq!(second.message, Order::Stop);
        assert_eq!(second.descriptors.len(), 1);
    }

    #[test]
    fn the_end_of_the_other_side_is_seen() {
        let (near, far) = pair();
        drop(near);
        assert!(recv::<Order>(&far, RecvFlags::empty()).expect("read").is_none());
    }

    #[test]
    fn a_message_beyond_the_bound_is_refused_before_it_is_sent() {
        let (near, _far) = pair();
        let spec = JailSpec { argv: vec!["x".repeat(MESSAGE_BYTES_MAX)], ..JailSpec::default() };
        let order = Order::Launch(Box::new(spec));
        assert!(send(&near, &order, None, SendFlags::empty()).is_err());
    }

    #[test]
    fn a_message_of_the_largest_size_passes_at_once() {
        let (near, far) = pair();
        let spec =
            JailSpec { argv: vec!["x".repeat(MESSAGE_BYTES_MAX - 1_024)], ..JailSpec::default() };
        let order = Order::Launch(Box::new(spec));
        send(&near, &order, None, SendFlags::DONTWAIT).expect("fits the socket's buffer");
        let received = recv::<Order>(&far, RecvFlags::empty()).expect("read").expect("open");
        assert_eq!(received.message, order);
    }
}
