//! `bench`: one method called by several callers at once, and how long its answers took.
//!
//! The loop is closed: each caller waits for its answer before it calls again, so a service that
//! stalls is called less, not later. Calls in progress when time is up are waited for, because
//! giving them up would leave it open whether they ran.

use std::{
    cell::{Cell, RefCell},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::future::try_join_all;
use http::uri::PathAndQuery;
use prost_reflect::MethodDescriptor;
use protocol::limits::MESSAGE_BYTES_MAX;
use tonic::{Code, Extensions, Request, Status, metadata::MetadataMap};

use super::{
    call::{self, Source},
    mesh,
};
use crate::{
    admin::Node,
    args::Bench,
    failed::{Exit, Failed, code_name, lost_the_node},
    schema::RequestError,
    show::bench::{self as show, Failure, Measured},
    terminal::Terminal,
};

/// How long calls are begun where nothing is said.
const DURATION: Duration = Duration::from_secs(10);

/// Calls the method as often as was asked, and prints what that took.
pub async fn run(
    args: &Bench,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let service = args.method.service();
    let (schema, _) = mesh::interface(&service, node).await?;
    let found = schema.method(&args.method);
    let method = found.map_err(|error| mesh::undescribed(&error, &service))?;
    let path = PathAndQuery::try_from(args.method.as_str())
        .map_err(|error| Failed::usage(format!("{}: {error}", args.method)))?;
    let plan = Plan {
        node,
        path,
        metadata: call::metadata(&args.headers, &args.whither, &service, node).await?,
        messages: messages(args.data.as_deref(), &method, terminal).await?,
        callers: args.concurrency,
        timeout: args.timeout,
    };
    let measured = RefCell::new(Measured::new()?);
    let interrupted = tokio::signal::ctrl_c();
    let end = match args.count {
        Some(count) => End::After(count),
        None => End::At(args.duration.unwrap_or(DURATION)),
    };
    let ended = tokio::select! {
        biased;
        _ = interrupted => Ok(()),
        ended = plan.perform(args.warm_up, end, &measured) => ended,
    };
    let measured = measured.into_inner();
    if ended.is_ok() || measured.calls() > 0 {
        let told = show::Told { method: args.method.as_str(), callers: args.concurrency };
        if json {
            terminal.json(&show::document(&told, &measured))?;
        } else {
            terminal.print(&show::text(&told, &measured, terminal.colour))?;
        }
    }
    ended?;
    Ok(if measured.failed() > 0 { Exit::Failed } else { Exit::Ok })
}

/// The messages of each call.
async fn messages(
    data: Option<&str>,
    method: &MethodDescriptor,
    terminal: &mut Terminal,
) -> Result<Vec<Bytes>, Failed> {
    let mut read = call::read_requests(Source::of(data), method.input(), terminal)?;
    let mut messages: Vec<Bytes> = Vec::new();
    let mut bytes = 0;
    while let Some(message) = read.recv().await {
        let message = message.map_err(|error| call::refused(&error))?;
        bytes += message.len();
        if bytes > MESSAGE_BYTES_MAX {
            let message =
                format!("the messages of one call have more than {MESSAGE_BYTES_MAX} bytes");
            return Err(Failed::usage(message));
        }
        messages.push(message);
    }
    if method.is_client_streaming() {
        return Ok(messages);
    }
    match messages.len() {
        0 => Ok(vec![Bytes::new()]),
        1 => Ok(messages),
        _ => Err(call::refused(&RequestError::NotOne {
            method: method.full_name().to_owned(),
            found: "more than one was given",
        })),
    }
}

/// When no more calls are begun.
#[derive(Clone, Copy)]
enum End {
    At(Duration),
    After(u64),
}

/// What is called, and how.
struct Plan<'a> {
    node: &'a Node,
    path: PathAndQuery,
    metadata: MetadataMap,
    messages: Vec<Bytes>,
    callers: u32,
    timeout: Duration,
}

impl Plan<'_> {
    async fn perform(
        &self,
        warm_up: Duration,
        end: End,
        measured: &RefCell<Measured>,
    ) -> Result<(), Failed> {
        if !warm_up.is_zero() {
            self.load(End::At(warm_up), |_, _| {}).await?;
        }
        measured.borrow_mut().begin(Instant::now());
        self.load(end, |took, failure| measured.borrow_mut().add(Instant::now(), took, failure))
            .await
    }

    /// Calls until `end`; `ended` hears of each call that has ended.
    async fn load(
        &self,
        end: End,
        ended: impl Fn(Duration, Option<Failure>),
    ) -> Result<(), Failed> {
        let begun = Instant::now();
        let calls = Cell::new(0_u64);
        let more = || {
            calls.set(calls.get() + 1);
            match end {
                End::At(time) => begun.elapsed() < time,
                End::After(count) => calls.get() <= count,
            }
        };
        let caller = async || {
            while more() {
                let (took, failure) = self.call().await?;
                ended(took, failure);
            }
            Ok(())
        };
        try_join_all((0..self.callers).map(|_| caller())).await.map(drop)
    }

    /// One call: how long it took, and how it failed if it did.
    async fn call(&self) -> Result<(Duration, Option<Failure>), Failed> {
        let messages = tokio_stream::iter(self.messages.clone());
        let metadata = self.metadata.clone();
        let mut request = Request::from_parts(metadata, Extensions::default(), messages);
        request.set_timeout(self.timeout);
        let begun = Instant::now();
        let exchange = call::exchange_all(self.node, request, &self.path);
        let answered = tokio::time::timeout(self.timeout, exchange).await;
        let took = begun.elapsed();
        match answered {
            Ok(Ok(())) => Ok((took, None)),
            Ok(Err(status)) if lost_the_node(&status) => Err(Failed::admin(&status)),
            Ok(Err(status)) => Ok((took, Some(failure(&status)))),
            Err(_) => Ok((took, Some(failure(&Status::cancelled("no answer in time"))))),
        }
    }
}

/// Which failure it is: the mesh says whether the call ran, a plugin that answers has run it, and
/// a deadline of this side leaves it open.
fn failure(status: &Status) -> Failure {
    let ran = match status.metadata().get(call::RAN).and_then(|ran| ran.to_str().ok()) {
        Some("not-started") => "not_started",
        Some("failed") => "failed",
        Some(_) => "unknown",
        None if status.code() == Code::Cancelled => "unknown",
        None => "answered",
    };
    let code = match status.code() {
        Code::Cancelled if ran == "unknown" => Code::DeadlineExceeded,
        code => code,
    };
    Failure { code: code_name(code), ran, message: status.message().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_told_apart_by_who_ended_the_call() {
        let by_service = failure(&Status::not_found("no such thing"));
        assert_eq!((by_service.code, by_service.ran), ("NOT_FOUND", "answered"));
        let here = failure(&Status::cancelled("Timeout expired"));
        assert_eq!((here.code, here.ran), ("DEADLINE_EXCEEDED", "unknown"));
        for (told, ran) in [("not-started", "not_started"), ("unknown", "unknown")] {
            let mut status = Status::unavailable("lost");
            status.metadata_mut().insert(call::RAN, told.parse().expect("ASCII"));
            assert_eq!(failure(&status).ran, ran);
        }
    }
}
