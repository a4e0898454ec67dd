//! The mesh as one plugin reaches it: by a socket of its own, and only as far as it is granted.

use std::{os::unix::net::UnixListener as StdUnixListener, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use gateway::{Grpc, serve_grpc};
use plugin_host::{MeshDoor, permissions::Access};
use protocol::{
    failure::{Failure, Reason},
    ports::{Call, Caller, Invoke, Reply},
};
use tokio::net::UnixListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::services::figures::{LateNode, OfNode};

/// Serves the mesh to plugins; who calls is known by the socket.
pub struct Door {
    /// What all listeners of the node share.
    pub grpc: Grpc,
    /// What the node tells of itself to whoever is granted that.
    pub node: LateNode,
    /// Carries the calls that are granted.
    pub mesh: Arc<dyn Invoke>,
    /// Owns the servers.
    pub servers: TaskTracker,
    /// Ends them with the node.
    pub stop: CancellationToken,
    /// How long calls in progress have when a plugin, or the node, ends.
    pub drain: Duration,
}

impl MeshDoor for Door {
    fn open(&self, plugin: &str, access: Arc<Access>, listener: StdUnixListener) -> Box<dyn Send> {
        let closed = self.stop.child_token();
        match UnixListener::from_std(listener) {
            Ok(listener) => {
                let caller = Caller::Plugin(plugin.into());
                let figures = OfNode::routes(Arc::clone(&access), self.node.clone());
                let granted = Granted { access, mesh: Arc::clone(&self.mesh) };
                let grpc = self.grpc.clone().through(Arc::new(granted));
                let grpc = grpc.with_routes([OfNode::name()], &figures.into_axum_router());
                self.servers.spawn(serve_grpc(listener, grpc, caller, closed.clone(), self.drain));
            }
            Err(error) => tracing::error!(plugin, %error, "cannot serve the mesh to the plugin"),
        }
        Box::new(closed.drop_guard())
    }
}

/// Lets through what one plugin is granted.
struct Granted {
    access: Arc<Access>,
    mesh: Arc<dyn Invoke>,
}

impl Invoke for Granted {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        match self.access.may_call(&call.head.path) {
            Ok(()) => self.mesh.invoke(call),
            Err(text) => Box::pin(std::future::ready(Err(Failure::failed(Reason::Refused, text)))),
        }
    }
}

#[cfg(test)]
mod tests {
    use plugin_host::{Logs, permissions::Policies};
    use protocol::ports::{Body, CallHead, Locality};

    use super::*;

    /// A mesh that answers everything.
    struct Everything;

    impl Invoke for Everything {
        fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
            let reply = Reply { metadata: call.head.metadata, body: call.body };
            Box::pin(std::future::ready(Ok(reply)))
        }
    }

    #[tokio::test]
    async fn a_call_that_is_not_granted_never_reaches_the_mesh() {
        let asked = ["call:demo.v1.Counter".parse().expect("a permission")];
        let policy = Policies::default().of("echo");
        let logs = Logs::new("node", "echo", 10);
        let access = Arc::new(Access::new("echo", &asked, policy, logs));
        let door = Granted { access: Arc::clone(&access), mesh: Arc::new(Everything) };
        let call = |path: &str| {
            let head = CallHead {
                path: path.parse().expect("a method"),
                metadata: http::HeaderMap::new(),
                deadline: None,
                locality: Locality::default(),
                caller: Caller::Plugin("echo".into()),
            };
            let body = http_body_util::Empty::new();
            let body = http_body_util::BodyExt::map_err(body, |never| match never {});
            door.invoke(Call { head, body: Body::new(body) })
        };
        assert!(call("demo.v1.Counter/Add").await.is_ok());
        let failure = call("demo.v1.Kv/Get").await.err().expect("refused");
        assert_eq!(failure.grpc_code(), 7, "PERMISSION_DENIED");
        assert!(failure.message.contains("`call:demo.v1.Kv`"), "{}", failure.message);
        assert_eq!(access.counts().denied(), 1);
    }
}
