//! `ping`: round trips through the mesh to each provider of a service.
//!
//! A probe is a call of a method that no service has, pinned to one peer. It takes the way of every
//! call, to the plugin and back; whatever the plugin answers is the reply, and nothing runs. That a
//! failure was the mesh's is told by its `bh-ran` trailer, which a plugin cannot send.

use std::time::{Duration, Instant};

use futures::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue, uri::PathAndQuery};
use protocol::{id::PeerId, proto::admin::Provider, service::ServiceName};
use tokio::time::MissedTickBehavior;
use tonic::{Code, Extensions, Request, Status, metadata::MetadataMap};

use super::{call, mesh};
use crate::{
    admin::Node,
    args::{Ping, Whither},
    failed::{Exit, Failed, code_name, lost_the_node},
    show::ping::{self as show, Line, Pinged},
    terminal::Terminal,
};

/// The method probed: nobody's.
const METHOD: &str = "BlackholePing";

/// Probes every provider, and prints replies as they come and at the end the figures of each.
pub async fn run(
    args: &Ping,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let service = &args.service;
    let mut pinged = targets(args, node).await?;
    let path = PathAndQuery::try_from(format!("/{service}/{METHOD}"))
        .map_err(|error| Failed::usage(format!("{service}: {error}")))?;
    let interrupted = tokio::signal::ctrl_c();
    tokio::pin!(interrupted);
    let mut ticks = tokio::time::interval(args.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for round in 1..=args.count {
        let probes = async {
            ticks.tick().await;
            join_all(pinged.iter().map(|one| probe(node, &path, one.peer, args.timeout))).await
        };
        let outcomes = tokio::select! {
            biased;
            _ = &mut interrupted => break,
            outcomes = probes => outcomes,
        };
        for (one, outcome) in pinged.iter_mut().zip(outcomes) {
            let outcome = outcome?;
            if !json {
                terminal.print(&show::line(&Line { one, round, outcome: &outcome }))?;
            }
            one.add(outcome);
        }
    }
    if json {
        terminal.json(&show::document(service.as_str(), &pinged))?;
    } else {
        terminal.print(&format!("\n{}", show::text(&pinged, terminal.colour)))?;
    }
    let silent = pinged.iter().any(|one| one.times.is_empty());
    Ok(if silent { Exit::Failed } else { Exit::Ok })
}

/// The peers to probe: each that has a provider, once.
async fn targets(args: &Ping, node: &Node) -> Result<Vec<Pinged>, Failed> {
    let service = &args.service;
    let whither = Whither { peer: args.peer.clone(), ..Whither::default() };
    let only = mesh::peer(&whither, service, node).await?;
    let mut pinged: Vec<Pinged> = Vec::new();
    for provider in providers(service, node).await? {
        let Ok(peer) = provider.peer_id.parse::<PeerId>() else { continue };
        let known = pinged.iter().any(|one| one.peer == peer);
        if !known && only.is_none_or(|only| only == peer) {
            pinged.push(Pinged::new(peer, provider));
        }
    }
    if pinged.is_empty() {
        let message = format!("nobody offers {service}");
        return Err(Failed::not_found(message).hint("`blackhole services` lists what is offered"));
    }
    Ok(pinged)
}

async fn providers(service: &ServiceName, node: &Node) -> Result<Vec<Provider>, Failed> {
    let known = mesh::known(node).await?;
    let found = known.into_iter().find(|known| known.name == service.as_str());
    Ok(found.map(|service| service.providers).unwrap_or_default())
}

/// One probe: how long its reply took, or why there was none. That the node itself is gone is a
/// failure of the command.
async fn probe(
    node: &Node,
    path: &PathAndQuery,
    peer: PeerId,
    timeout: Duration,
) -> Result<Result<Duration, String>, Failed> {
    let mut headers = HeaderMap::new();
    let peer = HeaderValue::from_str(&peer.to_string());
    let peer = peer.map_err(|error| Failed::usage(error.to_string()))?;
    headers.insert(HeaderName::from_static("bh-peer"), peer);
    let empty = tokio_stream::once(bytes::Bytes::new());
    let metadata = MetadataMap::from_headers(headers);
    let mut request = Request::from_parts(metadata, Extensions::default(), empty);
    request.set_timeout(timeout);
    let begun = Instant::now();
    let answered = tokio::time::timeout(timeout, call::exchange_all(node, request, path)).await;
    let took = begun.elapsed();
    match answered {
        Err(_) => Ok(Err(format!("no reply within {timeout:?}"))),
        Ok(Ok(())) => Ok(Ok(took)),
        Ok(Err(status)) if lost_the_node(&status) => Err(Failed::admin(&status)),
        Ok(Err(status)) if is_reply(&status) => Ok(Ok(took)),
        Ok(Err(status)) => Ok(Err(format!("{}: {}", code_name(status.code()), status.message()))),
    }
}

/// The plugin said so itself. The deadline of a call can also end it on this side.
fn is_reply(status: &Status) -> bool {
    !status.metadata().contains_key(call::RAN)
        && !matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded)
}
