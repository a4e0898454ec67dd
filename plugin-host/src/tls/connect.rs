//! The host's side of TLS to a plugin: HTTP/2 and nothing else, with exactly the certificate that
//! was issued for the run.

use std::{io, sync::Arc};

use futures_rustls::{TlsConnector, client::TlsStream};
use rcgen::KeyPair;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
};
use tokio::net::TcpStream;
use tokio_util::compat::{Compat, FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

/// What gRPC's clients and servers agree on.
const ALPN: &[u8] = b"h2";

/// Takes one certificate, whoever issued it and whatever it says: the one that the host issued for
/// the run, which nobody else has the key of. Its dates bind others.
#[derive(Debug)]
struct Pinned {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if *end_entity == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// How to connect to whoever has the key of `certificate`, with a certificate and key of `own`.
pub(super) fn client(
    certificate: CertificateDer<'static>,
    (own, key): (rcgen::Certificate, KeyPair),
) -> io::Result<ClientConfig> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let pinned = Arc::new(Pinned { certificate, provider: Arc::clone(&provider) });
    let key = PrivatePkcs8KeyDer::from(key.serialize_der());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .dangerous()
        .with_custom_certificate_verifier(pinned)
        .with_client_auth_cert(vec![own.into()], key.into())
        .map_err(io::Error::other)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // A few connections in a plugin's life: a handshake each is cheap, and proves its key again.
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Makes TLS of `stream`. An error says what the plugin does instead.
pub(crate) async fn connect(
    config: &Arc<ClientConfig>,
    stream: TcpStream,
) -> io::Result<Compat<TlsStream<Compat<TcpStream>>>> {
    let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
    let connecting = TlsConnector::from(Arc::clone(config)).connect(name, stream.compat());
    let stream = connecting.await.map_err(explain)?;
    if stream.get_ref().1.alpn_protocol() != Some(ALPN) {
        let text = "it speaks TLS without agreeing on HTTP/2 (ALPN `h2`), as gRPC needs it";
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    Ok(stream.compat())
}

/// In words for whoever wrote the plugin.
fn explain(error: io::Error) -> io::Error {
    let told = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let text = match told {
        Some(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)) => {
            "its certificate is not the one that the node issued for it: serve the one in \
             BH_TLS_CERT, with the key in BH_TLS_KEY"
                .to_owned()
        }
        Some(Error::InvalidMessage(_)) => {
            "its manifest says that it listens with TLS, and it answers in something else: serve \
             TLS with BH_TLS_CERT and BH_TLS_KEY, or let it listen on `tcp:PORT`"
                .to_owned()
        }
        Some(error) => format!("no TLS with it: {error}"),
        None if is_end(&error) => format!(
            "its manifest says that it listens with TLS, and it closed the connection at the \
             node's greeting ({error}): serve TLS with BH_TLS_CERT and BH_TLS_KEY, or let it \
             listen on `tcp:PORT`"
        ),
        None => return error,
    };
    io::Error::new(io::ErrorKind::InvalidData, text)
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}
