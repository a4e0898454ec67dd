//! Where the test double listens: on the socket it is given, on descriptor 3, or on a port, with
//! TLS or without.

use std::{future::Future, sync::Arc};

use futures_rustls::TlsAcceptor;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{io::DuplexStream, net::TcpListener, sync::mpsc};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tokio_util::compat::{FuturesAsyncReadCompatExt as _, TokioAsyncReadCompatExt as _};
use tonic::transport::server::Router;

use crate::Options;

pub(crate) async fn serve(router: Router, options: &Options, end: impl Future<Output = ()>) {
    if options.has("--fd") {
        assert_eq!(std::env::var("LISTEN_FDS").as_deref(), Ok("1"));
        assert_eq!(std::env::var("LISTEN_PID"), Ok(std::process::id().to_string()));
        let listener = descriptor_three();
        listener.set_nonblocking(true).expect("non-blocking");
        let listener = tokio::net::UnixListener::from_std(listener).expect("a listener");
        let incoming = UnixListenerStream::new(listener);
        router.serve_with_incoming_shutdown(incoming, end).await.expect("serves");
    } else if let Some(port) = options.value("--tcp") {
        let address = format!("127.0.0.1:{port}").parse().expect("a port");
        router.serve_with_shutdown(address, end).await.expect("serves");
    } else if let Some(port) = options.value("--tls") {
        let incoming = secured(port, configuration(options.has("--strange"))).await;
        router.serve_with_incoming_shutdown(incoming, end).await.expect("serves");
    } else {
        let path = std::env::var("BH_PLUGIN_SOCKET").expect("BH_PLUGIN_SOCKET");
        let listener = tokio::net::UnixListener::bind(path).expect("binds");
        let incoming = UnixListenerStream::new(listener);
        router.serve_with_incoming_shutdown(incoming, end).await.expect("serves");
    }
}

fn descriptor_three() -> std::os::unix::net::UnixListener {
    let mut passed = listenfd::ListenFd::from_env();
    passed.take_unix_listener(0).expect("a listener").expect("descriptor 3 was passed")
}

/// What it is given, and only its node as a client; or a `strange` certificate of its own making.
fn configuration(strange: bool) -> ServerConfig {
    let file = |name: &str| std::env::var(name).expect("the contract");
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(file("BH_TLS_CA")).expect("an authority");
    roots.add(authority).expect("an authority");
    let (certificate, key) = if strange {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
        let key = PrivateKeyDer::from_pem_slice(made.key_pair.serialize_pem().as_bytes());
        (made.cert.der().clone(), key)
    } else {
        let certificate = CertificateDer::from_pem_file(file("BH_TLS_CERT"));
        (certificate.expect("a certificate"), PrivateKeyDer::from_pem_file(file("BH_TLS_KEY")))
    };
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(clients.build().expect("a verifier"))
        .with_single_cert(vec![certificate], key.expect("a key"))
        .expect("the key of the certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Connections whose TLS has been taken off them.
async fn secured(
    port: &str,
    config: ServerConfig,
) -> ReceiverStream<Result<DuplexStream, std::io::Error>> {
    let listener = TcpListener::bind(format!("127.0.0.1:{port}")).await.expect("binds");
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (accepted, incoming) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (accepting, accepted) = (acceptor.accept(stream.compat()), accepted.clone());
            tokio::spawn(async move {
                let Ok(outside) = accepting.await else { return };
                let (inside, mut end) = tokio::io::duplex(1 << 16);
                let _ = accepted.send(Ok(inside)).await;
                let _ = tokio::io::copy_bidirectional(&mut outside.compat(), &mut end).await;
            });
        }
    });
    ReceiverStream::new(incoming)
}
