//! Asks a plugin now how it is, rather than telling what was last seen.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use http_body_util::{BodyExt, Full};
use plugin_host::{Host, PluginStatus};
use protocol::{
    failure::Failure,
    ports::{Body, Call, CallHead, Caller, Locality},
};

/// How long a plugin may take to answer; below what the command waits for all of them.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// `HealthCheckRequest {}` as gRPC frames it: no compression, no bytes.
const REQUEST: [u8; 5] = [0; 5];

/// `HealthCheckResponse { status: SERVING }` as gRPC frames it.
const SERVING: [u8; 7] = [0, 0, 0, 0, 2, 8, 1];

/// `Ok` where it serves, else what is wrong in one clause.
pub async fn probe(host: &Host, plugin: &PluginStatus) -> Result<(), String> {
    let Some(instance) = plugin.instance else {
        let state = plugin.state;
        return Err(if plugin.reason.is_empty() {
            format!("is {state}")
        } else {
            format!("is {state}: {}", plugin.reason)
        });
    };
    let deadline = Instant::now() + ANSWER_MAX;
    let ask = async {
        let channel = host.channels().reach(instance, deadline).await?;
        let reply = channel.invoke(check(deadline)).await?;
        let head = reply.metadata.clone();
        Ok::<_, Failure>((head, reply.body.collect().await?))
    };
    match tokio::time::timeout_at(deadline.into(), ask).await {
        Err(_) => Err(format!("did not answer within {} s", ANSWER_MAX.as_secs())),
        Ok(Err(failure)) => Err(failure.to_string()),
        Ok(Ok((head, body))) => {
            let status = |of: Option<&HeaderMap>| of?.get("grpc-status").cloned();
            let status = status(body.trailers()).or_else(|| status(Some(&head)));
            match status.as_ref().and_then(|status| status.to_str().ok()) {
                // A program without health that answers so is there.
                Some("12") => Ok(()),
                Some("0") if body.to_bytes() == SERVING[..] => Ok(()),
                Some("0") => Err("says that it does not serve".into()),
                code => Err(format!("answers with status {}", code.unwrap_or("unknown"))),
            }
        }
    }
}

fn check(deadline: Instant) -> Call {
    let mut metadata = HeaderMap::new();
    metadata.insert("content-type", http::HeaderValue::from_static("application/grpc"));
    metadata.insert("te", http::HeaderValue::from_static("trailers"));
    let request = Full::new(Bytes::from_static(&REQUEST)).map_err(|never| match never {});
    Call {
        head: CallHead {
            path: "/grpc.health.v1.Health/Check".parse().expect("a constant path"),
            metadata,
            deadline: Some(deadline),
            locality: Locality::Local,
            caller: Caller::Operator,
        },
        body: Body::new(request),
    }
}
