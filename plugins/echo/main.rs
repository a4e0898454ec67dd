//! `echo`: says everything back. The plugin to read first.

mod probe;

use std::process::ExitCode;

use blackhole_plugins::demo::echo_server::{Echo, EchoServer};
use blackhole_plugins::demo::{DESCRIPTORS, HandleReply, HandleRequest, InfoReply, InfoRequest};
use blackhole_plugins::demo::{RepeatRequest, SayReply, SayRequest, probe_server::ProbeServer};
use sdk::{Answer, Plugin, Stream};
use tokio_stream::StreamExt;
use tonic::{Request, Response, Streaming};

struct Parrot;

fn echo(text: &str) -> SayReply {
    SayReply { text: format!("Echo: {text}") }
}

#[tonic::async_trait]
impl Echo for Parrot {
    type RepeatStream = Stream<SayReply>;
    type ChatStream = Stream<SayReply>;

    async fn info(&self, _: Request<InfoRequest>) -> Answer<InfoReply> {
        let [name, version, description] = ["echo", "1.0.0", "Simple echo plugin"].map(Into::into);
        Ok(Response::new(InfoReply { name, version, description }))
    }

    async fn handle(&self, request: Request<HandleRequest>) -> Answer<HandleReply> {
        let data = [b"Echo: ", request.into_inner().data.as_slice()].concat();
        Ok(Response::new(HandleReply { success: true, data }))
    }

    async fn say(&self, request: Request<SayRequest>) -> Answer<SayReply> {
        Ok(Response::new(echo(&request.into_inner().text)))
    }

    async fn repeat(&self, request: Request<RepeatRequest>) -> Answer<Stream<SayReply>> {
        let RepeatRequest { text, times } = request.into_inner();
        let replies = (0..times).map(move |_| Ok(echo(&text)));
        Ok(Response::new(Box::pin(tokio_stream::iter(replies))))
    }

    async fn join(&self, request: Request<Streaming<SayRequest>>) -> Answer<SayReply> {
        let texts = request.into_inner().map(|said| said.map(|said| said.text));
        let texts: Vec<_> = texts.collect::<Result<_, _>>().await?;
        Ok(Response::new(echo(&texts.join(" "))))
    }

    async fn chat(&self, request: Request<Streaming<SayRequest>>) -> Answer<Stream<SayReply>> {
        let replies = request.into_inner().map(|said| said.map(|said| echo(&said.text)));
        Ok(Response::new(Box::pin(replies)))
    }
}

fn main() -> ExitCode {
    Plugin::new("echo", "1.0.0")
        .descriptors(DESCRIPTORS)
        .service(EchoServer::new(Parrot))
        .service(ProbeServer::new(probe::Prober))
        .run()
}
