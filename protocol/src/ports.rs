//! The traits at which crates meet, and the one shape of a call between them.
//!
//! A call is gRPC's model in HTTP's types: a head, a body of length-prefixed messages in chunks
//! whose boundaries mean nothing, and trailers as the body's last frame. Nobody between caller and
//! plugin looks inside the body, so compression, large messages and all four kinds of call pass
//! untouched.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::HeaderMap;
use http_body_util::combinators::UnsyncBoxBody;

use crate::{failure::Failure, id::PeerId, service::MethodPath};

/// The bytes of one direction of a call. Trailers are its last frame. An error in it is the
/// mesh's own: the call could not be brought to an end.
pub type Body = UnsyncBoxBody<Bytes, Failure>;

/// Who calls, as authenticated where the call entered this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Caller {
    /// The operator, on the admin socket.
    Operator,
    /// A program outside the mesh, on one of the gateway's addresses.
    Client,
    /// A plugin of this node, by its name, on its own mesh socket.
    Plugin(String),
    /// Another peer, proved by its key.
    Peer(PeerId),
}

/// Where a call may be answered. Remoting is never implicit: the caller can forbid it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Locality {
    /// Only on this node.
    Local,
    /// On this node if it offers the service, else elsewhere.
    #[default]
    PreferLocal,
    /// Anywhere, spread over all providers alike.
    Any,
    /// Only at this peer.
    Peer(PeerId),
}

/// Everything about a call but its messages.
#[derive(Debug, Clone)]
pub struct CallHead {
    /// Which method.
    pub path: MethodPath,
    /// gRPC metadata as HTTP headers, `grpc-timeout` and hop-by-hop headers removed, `te` and
    /// `content-type` and `grpc-encoding` kept.
    pub metadata: HeaderMap,
    /// When the caller gives up. Crosses hops as time left.
    pub deadline: Option<Instant>,
    /// Where it may be answered.
    pub locality: Locality,
    /// Who calls.
    pub caller: Caller,
}

/// A call on its way to a plugin.
pub struct Call {
    /// Everything but the messages.
    pub head: CallHead,
    /// The caller's messages.
    pub body: Body,
}

/// The answer. Its status is in the body's trailers, or, where there is no body, in `metadata`
/// (gRPC's *trailers-only*).
pub struct Reply {
    /// Initial metadata.
    pub metadata: HeaderMap,
    /// The plugin's messages and trailers.
    pub body: Body,
}

/// Something that answers calls. Dropping the future, or the reply's body, cancels the call.
pub trait Invoke: Send + Sync {
    /// Carries `call` out. `Err` means that the mesh failed before the plugin answered anything;
    /// a failure after that is an error of the reply's body.
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>>;
}

/// Turns a target into something that can be invoked: a channel to a plugin's process, a link to a
/// peer. Fails with [`crate::failure::Ran::NotStarted`] only.
pub trait Reach<Target>: Send + Sync {
    /// Reaches `target`, giving up at `deadline`.
    fn reach(
        &self,
        target: Target,
        deadline: Instant,
    ) -> BoxFuture<'static, Result<Arc<dyn Invoke>, Failure>>;
}

/// Durable keys and values of one owner. Writes are on disk when they return: call them from a
/// thread that may block.
pub trait Store: Send + Sync {
    /// The value under `key`.
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError>;
    /// Writes all of `changes` or none; `None` deletes.
    fn write(&self, changes: Vec<Change>) -> Result<(), StoreError>;
    /// All entries whose key begins with `prefix`, in key order, at most `entries_max`.
    fn scan(&self, prefix: &[u8], entries_max: usize) -> Result<Vec<Entry>, StoreError>;
}

/// A key and its new value; `None` deletes.
pub type Change = (Vec<u8>, Option<Vec<u8>>);

/// A key and its value.
pub type Entry = (Vec<u8>, Vec<u8>);

/// The store could not do it.
#[derive(Debug, thiserror::Error)]
#[error("the store could not {action}: {cause}")]
pub struct StoreError {
    /// What was tried: `read`, `write`.
    pub action: &'static str,
    /// What the store says.
    pub cause: String,
}
