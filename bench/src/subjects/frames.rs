//! One hop of the product's own frames: a link (`protocol/link`) over a Unix socket, with this
//! program at both ends and neither peer nor plugin between.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use futures::{
    FutureExt,
    future::{BoxFuture, LocalBoxFuture, ready},
};
use http::{HeaderMap, HeaderValue, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full};
use link::{Link, LinkSettings};
use protocol::{
    failure::Failure,
    ports::{Body, Call, CallHead, Caller, Invoke, Locality, Reply},
    service::MethodPath,
};
use testnet::{cluster::World, process::Process};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::{Group, Started, Subject, responder};
use crate::grpc::PAYLOAD;
use crate::load::{self, Demand, Sample};

/// Frames on one socket.
pub const GROUP: Group = Group {
    names: &["frames-unix"],
    start: |world| start(world).boxed_local(),
    respond: Some(|address| respond(address).boxed_local()),
};

async fn start(world: &World) -> Result<Started> {
    let socket = world.path().join("frames.sock");
    let socket = socket.to_str().context("a path in UTF-8")?;
    let responder = responder(world, GROUP.names[0], socket).await?;
    let stream = UnixStream::connect(socket).await?;
    let (link, driver) = link::client(stream, LinkSettings::default());
    let mut drivers = JoinSet::new();
    drivers.spawn(async move { drop(driver.await) });
    let path = "/demo.v1.Echo/Say".parse()?;
    Ok(vec![Box::new(Frames { link, path, responder, _drivers: drivers })])
}

/// Answers the calls of its one link.
async fn respond(socket: String) -> Result<()> {
    let listener = UnixListener::bind(socket)?;
    println!("ready");
    let (stream, _) = listener.accept().await?;
    let end = link::serve(stream, LinkSettings::default(), Caller::Client, Arc::new(Echo)).await;
    println!("{end}");
    Ok(())
}

/// Answers with the request's own body and a status.
struct Echo;

impl Invoke for Echo {
    fn invoke(&self, call: Call) -> BoxFuture<'static, Result<Reply, Failure>> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("0"));
        let body = call.body.with_trailers(ready(Some(Ok(trailers))));
        ready(Ok(Reply { metadata: call.head.metadata, body: Body::new(body) })).boxed()
    }
}

struct Frames {
    link: Link,
    path: MethodPath,
    responder: Process,
    /// Drives the link; ends with it.
    _drivers: JoinSet<()>,
}

impl Frames {
    fn call(path: &MethodPath) -> Call {
        let mut metadata = HeaderMap::new();
        metadata.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        let head = CallHead {
            path: path.clone(),
            metadata,
            deadline: None,
            locality: Locality::Any,
            caller: Caller::Client,
        };
        let body = Full::new(Bytes::from_static(PAYLOAD)).map_err(|never| match never {});
        Call { head, body: Body::new(body) }
    }
}

impl Subject for Frames {
    fn name(&self) -> &'static str {
        GROUP.names[0]
    }

    fn way(&self) -> &'static str {
        "calls on a link over a Unix socket, one hop, neither peer nor plugin"
    }

    fn pids(&self) -> Vec<u32> {
        vec![self.responder.pid()]
    }

    fn run(&mut self, demand: Demand) -> LocalBoxFuture<'_, Result<Sample>> {
        let asking = load::closed(demand, || {
            let (link, path) = (self.link.clone(), self.path.clone());
            async move || {
                let reply = link.invoke(Self::call(&path)).await?;
                let answer = reply.body.collect().await?.to_bytes();
                ensure!(answer == PAYLOAD.as_slice(), "an answer of another content");
                Ok(())
            }
        });
        asking.boxed_local()
    }
}
