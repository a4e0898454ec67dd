//! `blackhole.telemetry.v1.Figures`: what a plugin that is granted to call it learns of the node.
//! Answered on the plugin's own mesh socket; each call is judged as a call into the mesh is.

use std::sync::{Arc, OnceLock, Weak};

use plugin_host::permissions::Access;
use protocol::{
    proto::telemetry::{
        ReadRequest, Sample, TextRequest, TextResponse,
        figures_server::{Figures, FiguresServer},
    },
    service::ServiceName,
};
use tonic::{Request, Response, Status};

use crate::{admin::Node, metrics, sample};

/// The node, once there is one. It outlives no node: doors are held by the host, which the node
/// holds.
pub type LateNode = Arc<OnceLock<Weak<Node>>>;

/// The service as one plugin meets it.
pub struct OfNode {
    access: Arc<Access>,
    node: LateNode,
}

impl OfNode {
    /// Its name.
    pub const NAME: &'static str = "blackhole.telemetry.v1.Figures";

    /// For the plugin that `access` is of.
    pub fn routes(access: Arc<Access>, node: LateNode) -> tonic::service::Routes {
        tonic::service::Routes::new(FiguresServer::new(Self { access, node }))
    }

    /// Its name, as the gateway wants it.
    pub fn name() -> ServiceName {
        Self::NAME.parse().expect("a service name")
    }

    fn may(&self, method: &str) -> Result<Arc<Node>, Status> {
        let path = format!("/{}/{method}", Self::NAME).parse().expect("a method");
        self.access.may_call(&path).map_err(Status::permission_denied)?;
        let node = self.node.get().and_then(Weak::upgrade);
        node.ok_or_else(|| Status::unavailable("the node is starting, or ending"))
    }
}

#[tonic::async_trait]
impl Figures for OfNode {
    async fn read(&self, _: Request<ReadRequest>) -> Result<Response<Sample>, Status> {
        Ok(Response::new(sample::sample(&*self.may("Read")?)))
    }

    async fn text(&self, request: Request<TextRequest>) -> Result<Response<TextResponse>, Status> {
        let node = self.may("Text")?;
        let plugin = request.into_inner().plugin;
        let text = if plugin.is_empty() {
            metrics::page(&node.registry)
        } else {
            let absent = || Status::not_found(metrics::nobody(&plugin));
            metrics::page_of(&node.registry, &node.host, &plugin).ok_or_else(absent)?
        };
        Ok(Response::new(TextResponse { text }))
    }
}

#[cfg(test)]
mod tests {
    use plugin_host::{Logs, permissions::Policies};

    use super::*;

    fn asked_by(permission: &str) -> OfNode {
        let asked = [permission.parse().expect("a permission")];
        let logs = Logs::new("node", "curious", 10);
        let policy = Policies::default().of("curious");
        let access = Arc::new(Access::new("curious", &asked, policy, logs));
        OfNode { access, node: LateNode::default() }
    }

    #[tokio::test]
    async fn only_who_is_granted_the_figures_is_answered() {
        let refused = asked_by("call:demo.v1.Counter").read(Request::new(ReadRequest {})).await;
        assert_eq!(refused.expect_err("refused").code(), tonic::Code::PermissionDenied);
        let granted = asked_by("call:blackhole.telemetry.v1.Figures");
        let early = granted.text(Request::new(TextRequest::default())).await;
        assert_eq!(early.expect_err("there is no node").code(), tonic::Code::Unavailable);
    }
}
