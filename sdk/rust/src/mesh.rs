//! The way out: every other service of the mesh, by its name.

use std::{
    env,
    path::{Path, PathBuf},
    task::{Context, Poll},
};

use tonic::{
    body::Body,
    transport::{Channel, Endpoint, channel::ResponseFuture},
};
use tower::Service;

use crate::{LinkChannel, context};

/// A channel to every service of the mesh, under the identity of this plugin. Calls take the
/// [`CallContext`](crate::CallContext) along in which they are made.
///
/// Clones share the connection.
#[derive(Debug, Clone)]
pub struct Mesh(Channel);

impl Service<http::Request<Body>> for Mesh {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> ResponseFuture {
        context::take_along(request.headers_mut());
        self.0.call(request)
    }
}

/// The channel to the mesh.
///
/// Give it to any generated client: `CounterClient::new(sdk::mesh()?)`. It connects at the first
/// call and again whenever the connection was lost. Make one, and clone it as often as needed.
///
/// Must run inside a runtime, as a service's methods do.
pub fn mesh() -> Result<Mesh, MeshError> {
    let socket = env::var_os("BH_MESH_SOCKET").map(PathBuf::from).ok_or(MeshError::NoMesh)?;
    mesh_through(&socket)
}

/// The same through a socket that is known otherwise: code within a node has no environment of
/// its own.
pub fn mesh_through(socket: &Path) -> Result<Mesh, MeshError> {
    let path = socket.to_str().ok_or_else(|| MeshError::BadPath(socket.into()))?;
    let endpoint = Endpoint::from_shared(format!("unix:{path}"))
        .map_err(|_| MeshError::BadPath(socket.into()))?;
    Ok(Mesh(endpoint.connect_lazy()))
}

/// As [`mesh()`], in frames instead of HTTP/2: a fraction of the cost of each call.
pub fn mesh_link() -> Result<LinkChannel, MeshError> {
    let socket = env::var_os("BH_MESH_SOCKET").ok_or(MeshError::NoMesh)?;
    Ok(LinkChannel::unix(socket))
}

/// Why there is no way into the mesh.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MeshError {
    /// Nothing told where the mesh is.
    #[error(
        "BH_MESH_SOCKET is not set, so there is no mesh to call: load the plugin into a node, or \
         set it to the mesh socket of a running one (`blackhole status` shows the path)"
    )]
    NoMesh,
    /// The path is not text.
    #[error("BH_MESH_SOCKET is {path}, which is no usable path", path = .0.display())]
    BadPath(PathBuf),
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    #[tokio::test]
    async fn a_path_that_is_no_text_is_refused() {
        let path = PathBuf::from(std::ffi::OsString::from_vec(vec![b'/', 0xff]));
        assert_eq!(mesh_through(&path).err(), Some(MeshError::BadPath(path)));
    }

    #[tokio::test]
    async fn a_mesh_that_is_not_there_yet_is_no_error() {
        assert!(mesh_through(Path::new("/nowhere/mesh.sock")).is_ok());
    }
}
