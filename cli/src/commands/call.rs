//! `call`: any method of any service, with JSON in and JSON out.
//!
//! The interface comes from the mesh; messages are turned into bytes here and travel as the node's
//! own socket carries any gRPC call. All four kinds of method are one case on the wire, a stream
//! each way; what differs is how many requests there must be.
//!
//! Requests are read on a thread of their own, because reading standard input cannot be
//! interrupted; it ends with its input or with the process.

use std::{
    fs::File,
    io::{BufReader, Cursor, Read},
    path::PathBuf,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BufMut, Bytes};
use http::{HeaderMap, HeaderName, HeaderValue, uri::PathAndQuery};
use prost_reflect::{MessageDescriptor, MethodDescriptor};
use protocol::{limits::MESSAGE_BYTES_MAX, service::ServiceName};
use serde_json::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_stream::Stream;
use tonic::{
    Code, Extensions, Request, Status, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::{KeyAndValueRef, MetadataMap},
    transport::Channel,
};

use super::mesh;
use crate::{
    admin::Node,
    args::{Call, Whither},
    failed::{Exit, Failed},
    schema::{self, Form, RequestError},
    terminal::{Terminal, clean},
};

/// The trailer in which the mesh tells of a failure of its own whether the call ran.
pub(super) const RAN: &str = "bh-ran";

/// Requests read ahead of what the mesh takes: enough that reading never holds up sending, few
/// enough that a slow service slows the reading down.
const REQUESTS_AHEAD_MAX: usize = 16;

/// Calls the method and prints each answer as it arrives.
pub async fn run(
    args: &Call,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let service = args.method.service();
    let (schema, _) = mesh::interface(&service, node).await?;
    let found = schema.method(&args.method);
    let method = found.map_err(|error| mesh::undescribed(&error, &service))?;
    let metadata = metadata(&args.headers, &args.whither, &service, node).await?;

    let source = Source::of(args.data.as_deref());
    let requests = read_requests(source, method.input(), terminal)?;
    let (requests, unfit) = if method.is_client_streaming() {
        Requests::many(requests)
    } else {
        Requests::one(requests, &method).await?
    };
    let mut request = Request::from_parts(metadata, Extensions::default(), requests);
    let deadline = args.timeout.map(|timeout| Instant::now() + timeout);
    if let Some(timeout) = args.timeout {
        request.set_timeout(timeout);
    }
    let form = Form { compact: json, defaults: args.emit_defaults };
    tokio::select! {
        biased;
        Ok(error) = unfit => Err(refused(&error)),
        called = exchange(args, node, request, &method, form, terminal) => {
            called.map_err(|error| match error {
                Ended::ByStatus(status) => {
                    Failed::call(&in_time(*status, deadline), service.as_str())
                }
                Ended::Here(failed) => failed,
            })
        }
    }
}

/// Makes a call to its end; what it is answered with does not matter.
pub(super) async fn exchange_all(
    node: &Node,
    request: Request<impl Stream<Item = Bytes> + Send + 'static>,
    path: &PathAndQuery,
) -> Result<(), Status> {
    let mut client = client(node);
    client.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
    let mut answers = client.streaming(request, path.clone(), Untouched).await?.into_inner();
    while answers.message().await?.is_some() {}
    Ok(())
}

fn client(node: &Node) -> tonic::client::Grpc<Channel> {
    tonic::client::Grpc::new(node.channel())
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// How a call ended when it did not end well.
enum Ended {
    /// The service or the mesh said so.
    ByStatus(Box<Status>),
    /// We did.
    Here(Failed),
}

impl From<Status> for Ended {
    fn from(status: Status) -> Self {
        Self::ByStatus(Box::new(status))
    }
}

impl From<Failed> for Ended {
    fn from(failed: Failed) -> Self {
        Self::Here(failed)
    }
}

async fn exchange(
    args: &Call,
    node: &Node,
    request: Request<Requests>,
    method: &MethodDescriptor,
    form: Form,
    terminal: &mut Terminal,
) -> Result<Exit, Ended> {
    let mut client = client(node);
    client.ready().await.map_err(|error| Status::from_error(Box::new(error)))?;
    if args.verbose {
        show_metadata(terminal, '>', request.metadata());
    }
    let path = PathAndQuery::try_from(args.method.as_str())
        .map_err(|error| Failed::usage(format!("{}: {error}", args.method)))?;
    let answered = client.streaming(request, path, Untouched).await;
    let (metadata, mut answers, _) = match answered {
        Ok(response) => response.into_parts(),
        Err(status) => return Err(with_trailers(status, args, terminal).into()),
    };
    if args.verbose {
        show_metadata(terminal, '<', &metadata);
    }
    let output = method.output();
    loop {
        let answer = match answers.message().await {
            Ok(Some(answer)) => answer,
            Ok(None) => break,
            Err(status) => return Err(with_trailers(status, args, terminal).into()),
        };
        let text = schema::decode(&output, answer, form)
            .map_err(|error| Failed::new(error.to_string()))?;
        terminal.print(&text)?;
    }
    if args.verbose {
        show_end(terminal, &mut answers).await?;
    }
    Ok(Exit::Ok)
}

fn with_trailers(status: Status, args: &Call, terminal: &mut Terminal) -> Status {
    if args.verbose {
        show_metadata(terminal, '<', status.metadata());
    }
    status
}

async fn show_end(terminal: &mut Terminal, answers: &mut Streaming<Bytes>) -> Result<(), Status> {
    if let Some(trailers) = answers.trailers().await? {
        show_metadata(terminal, '<', &trailers);
    }
    Ok(())
}

/// What a client and its library send about themselves is left out: it is the same every time.
fn show_metadata(terminal: &mut Terminal, direction: char, metadata: &MetadataMap) {
    for pair in metadata.iter() {
        let (key, value) = match pair {
            KeyAndValueRef::Ascii(key, value) => (key.as_str(), value.to_str().unwrap_or("?")),
            KeyAndValueRef::Binary(key, value) => {
                (key.as_str(), std::str::from_utf8(value.as_encoded_bytes()).unwrap_or("?"))
            }
        };
        terminal.note(format_args!("{direction} {}: {}", clean(key), clean(value)));
    }
}

/// The client's own deadline is the caller's: it is told as such.
fn in_time(status: Status, deadline: Option<Instant>) -> Status {
    let over = deadline.is_some_and(|deadline| Instant::now() >= deadline);
    if over && status.code() == Code::Cancelled {
        return Status::deadline_exceeded("no answer within the time given");
    }
    status
}

/// The metadata of a call: what was given, and where it may go.
pub(super) async fn metadata(
    given: &[(String, String)],
    whither: &Whither,
    service: &ServiceName,
    node: &Node,
) -> Result<MetadataMap, Failed> {
    let mut headers = HeaderMap::new();
    for (key, value) in given {
        let unfit = |error: String| Failed::usage(format!("-H {key}: {error}"));
        let name = HeaderName::from_bytes(key.as_bytes()).map_err(|e| unfit(e.to_string()))?;
        let value = HeaderValue::from_str(value).map_err(|e| unfit(e.to_string()))?;
        headers.append(name, value);
    }
    if let Some(locality) = whither.locality() {
        headers.insert("bh-locality", HeaderValue::from_static(locality));
    }
    if let Some(peer) = mesh::peer(whither, service, node).await? {
        let peer = HeaderValue::from_str(&peer.to_string());
        headers.insert("bh-peer", peer.map_err(|e| Failed::usage(e.to_string()))?);
    }
    Ok(MetadataMap::from_headers(headers))
}

/// Requests that cannot be sent.
pub(super) fn refused(error: &RequestError) -> Failed {
    match error {
        RequestError::Unreadable { .. } => Failed::not_found(error.to_string()),
        _ => Failed::usage(error.to_string()),
    }
}

/// Where requests come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// Nothing was said.
    Nowhere,
    /// The command line.
    Text(String),
    /// A file.
    File(PathBuf),
    /// Standard input.
    Input,
}

impl Source {
    pub(super) fn of(data: Option<&str>) -> Self {
        match data {
            None => Self::Nowhere,
            Some("-" | "@-") => Self::Input,
            Some(data) => match data.strip_prefix('@') {
                Some(path) => Self::File(path.into()),
                None => Self::Text(data.into()),
            },
        }
    }
}

type Reading = Result<Bytes, RequestError>;

/// Starts reading. The receiver ends where the input ends.
pub(super) fn read_requests(
    source: Source,
    kind: MessageDescriptor,
    terminal: &mut Terminal,
) -> Result<mpsc::Receiver<Reading>, Failed> {
    let (from, input): (String, Box<dyn Read + Send>) = match source {
        Source::Nowhere => ("nowhere".into(), Box::new(std::io::empty())),
        Source::Text(text) => ("the command line".into(), Box::new(Cursor::new(text))),
        Source::Input => ("standard input".into(), terminal.take_input()),
        Source::File(path) => {
            let from = path.display().to_string();
            match File::open(&path) {
                Ok(file) => (from, Box::new(file)),
                Err(source) => return Err(refused(&RequestError::Unreadable { from, source })),
            }
        }
    };
    let (read, requests) = mpsc::channel(REQUESTS_AHEAD_MAX);
    let reading = std::thread::Builder::new().name("requests".into());
    let started = reading.spawn(move || {
        let values = serde_json::Deserializer::from_reader(BufReader::new(input)).into_iter();
        for value in values {
            let request = value.map_err(|error| unreadable(&from, error));
            let request = request.and_then(|value: Value| schema::encode(&kind, value));
            let last = request.is_err();
            if read.blocking_send(request).is_err() || last {
                return;
            }
        }
    });
    started.map_err(|error| Failed::new(format!("no thread to read requests: {error}")))?;
    Ok(requests)
}

fn unreadable(from: &str, error: serde_json::Error) -> RequestError {
    if error.is_io() {
        return RequestError::Unreadable { from: from.into(), source: error.into() };
    }
    RequestError::NotJson(error)
}

/// Requests on their way. An unfit one must not look like the end of them, which would tell the
/// service that all has been said: the stream stops, and the call is given up.
struct Requests {
    first: Option<Bytes>,
    rest: Option<mpsc::Receiver<Reading>>,
    unfit: Option<oneshot::Sender<RequestError>>,
}

impl Requests {
    /// As many as there are.
    fn many(rest: mpsc::Receiver<Reading>) -> (Self, oneshot::Receiver<RequestError>) {
        let (unfit, noticed) = oneshot::channel();
        (Self { first: None, rest: Some(rest), unfit: Some(unfit) }, noticed)
    }

    /// Exactly one, read before the call begins; an empty message where none was given.
    async fn one(
        mut read: mpsc::Receiver<Reading>,
        method: &MethodDescriptor,
    ) -> Result<(Self, oneshot::Receiver<RequestError>), Failed> {
        let first = match read.recv().await {
            None => Bytes::new(),
            Some(first) => first.map_err(|error| refused(&error))?,
        };
        if let Some(second) = read.recv().await {
            let method = method.full_name().to_owned();
            let more = RequestError::NotOne { method, found: "more than one was given" };
            return Err(refused(&second.err().unwrap_or(more)));
        }
        let (unfit, noticed) = oneshot::channel();
        Ok((Self { first: Some(first), rest: None, unfit: Some(unfit) }, noticed))
    }
}

impl Stream for Requests {
    type Item = Bytes;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        let Some(rest) = &mut self.rest else { return Poll::Ready(None) };
        match rest.poll_recv(context) {
            Poll::Ready(Some(Ok(request))) => Poll::Ready(Some(request)),
            Poll::Ready(Some(Err(error))) => {
                if let Some(unfit) = self.unfit.take() {
                    // Nobody listens any more when the call has ended by itself.
                    let _ = unfit.send(error);
                }
                Poll::Pending
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// Messages as the bytes they are.
#[derive(Debug, Clone, Copy)]
pub struct Untouched;

impl Codec for Untouched {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Untouched {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Untouched {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(from.copy_to_bytes(from.remaining())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_comes_from_the_line_a_file_or_the_input() {
        assert_eq!(Source::of(None), Source::Nowhere);
        assert_eq!(Source::of(Some("-")), Source::Input);
        assert_eq!(Source::of(Some("@a.json")), Source::File("a.json".into()));
        assert_eq!(Source::of(Some("{}")), Source::Text("{}".into()));
    }

    #[test]
    fn a_deadline_of_our_own_is_told_as_one() {
        let cancelled = || Status::cancelled("Timeout expired");
        let passed = in_time(cancelled(), Some(Instant::now()));
        assert_eq!(passed.code(), Code::DeadlineExceeded);
        assert_eq!(in_time(cancelled(), None).code(), Code::Cancelled);
    }
}
