use std::os::unix::fs::PermissionsExt;

use futures_rustls::TlsAcceptor;
use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::compat::{FuturesAsyncReadCompatExt, TokioAsyncReadCompatExt};

use super::*;

struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("made"))
    }

    fn authority(&self) -> Authority {
        Authority::of(self.0.path())
    }

    fn key_file(&self) -> PathBuf {
        self.0.path().join(AUTHORITY_KEY)
    }
}

fn text<'a>(issued: &'a Issued, name: &str) -> &'a [u8] {
    let found = issued.files.iter().find(|(known, _)| *known == name);
    found.expect("it is there").1.as_bytes()
}

/// A server with what `served` was issued, that takes only clients of `trusted`'s authority.
fn server(served: &Issued, trusted: &Issued) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_slice(text(trusted, AUTHORITY)).expect("PEM");
    roots.add(authority).expect("an authority");
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let key = PrivateKeyDer::from_pem_slice(text(served, KEY)).expect("PEM");
    let chain = vec![CertificateDer::from_pem_slice(text(served, CERTIFICATE)).expect("PEM")];
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(clients.build().expect("a verifier"))
        .with_single_cert(chain, key)
        .expect("the key of the certificate");
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// What comes of connecting, with `client`, to what `server` serves: a byte there and back.
async fn exchange(client: &Arc<ClientConfig>, server: ServerConfig) -> io::Result<u8> {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let address = listener.local_addr().expect("bound");
    let serving = async {
        let (stream, _) = listener.accept().await?;
        let stream = TlsAcceptor::from(Arc::new(server)).accept(stream.compat()).await?;
        let mut stream = stream.compat();
        let byte = stream.read_u8().await?;
        stream.write_u8(byte + 1).await?;
        stream.flush().await?;
        stream.shutdown().await
    };
    let calling = async {
        let stream = TcpStream::connect(address).await?;
        let mut stream = connect(client, stream).await?;
        stream.write_u8(6).await?;
        stream.flush().await?;
        stream.read_u8().await
    };
    // What the server thinks of it, the client learns.
    let (_, called) = tokio::join!(serving, calling);
    called
}

#[tokio::test]
async fn a_run_and_its_host_prove_themselves_to_each_other() {
    let authority = Node::new();
    let authority = authority.authority();
    let issued = authority.issue("a_plugin", "00ff").expect("issued");
    assert_eq!(exchange(&issued.client, server(&issued, &issued)).await.expect("both"), 7);
}

#[tokio::test]
async fn the_certificate_of_another_run_is_refused_though_its_issuer_is_the_same() {
    let node = Node::new();
    let authority = node.authority();
    let mine = authority.issue("a", "01").expect("issued");
    let other = authority.issue("a", "02").expect("issued");
    assert_ne!(mine.shown.fingerprint, other.shown.fingerprint);
    let told = exchange(&mine.client, server(&other, &mine)).await.expect_err("refused");
    assert!(told.to_string().contains("not the one that the node issued"), "{told}");
}

#[tokio::test]
async fn a_plugin_may_refuse_whoever_is_not_its_node() {
    let (node, stranger) = (Node::new(), Node::new());
    let issued = node.authority().issue("a", "01").expect("issued");
    let strange = stranger.authority().issue("a", "01").expect("issued");
    // It serves what this host asks for, and takes another's clients only.
    exchange(&issued.client, server(&issued, &strange)).await.expect_err("refused");
}

#[tokio::test]
async fn plain_text_is_told_from_tls() {
    let issued = Node::new().authority().issue("a", "01").expect("issued");
    for answer in [Some(&b"\0\0\0\x04\0\0\0\0\0"[..]), None] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("bound");
        let serving = async {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut greeting = [0; 16];
            stream.read_exact(&mut greeting).await.expect("a greeting");
            if let Some(answer) = answer {
                stream.write_all(answer).await.expect("written");
            }
        };
        let calling = async {
            let stream = TcpStream::connect(address).await.expect("connects");
            connect(&issued.client, stream).await.expect_err("refused").to_string()
        };
        let ((), told) = tokio::join!(serving, calling);
        assert!(told.contains("says that it listens with TLS, and it"), "{told}");
    }
}

#[test]
fn the_authority_is_the_same_after_a_restart_and_its_key_is_private() {
    let node = Node::new();
    let first = node.authority().issue("a", "01").expect("issued");
    let mode = fs::metadata(node.key_file()).expect("there").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = fs::read(node.key_file()).expect("read");
    node.authority().issue("a", "02").expect("issued");
    assert_eq!(fs::read(node.key_file()).expect("read"), key);
    assert!(first.files.iter().all(|(_, text)| text.as_bytes() != key));
    let year = first.shown.expires.duration_since(SystemTime::now()).expect("to come");
    assert!(year > DAY * 364 && year <= LASTS, "{year:?}");
}

#[test]
fn a_key_that_others_can_read_or_that_is_damaged_is_refused_with_what_to_do() {
    let node = Node::new();
    node.authority().issue("a", "01").expect("issued");
    let told = || node.authority().issue("a", "01").err().expect("refused").to_string();
    fs::set_permissions(node.key_file(), fs::Permissions::from_mode(0o640)).expect("set");
    assert!(told().contains("chmod 600") && told().contains("plugin-ca.key"), "{}", told());
    fs::set_permissions(node.key_file(), fs::Permissions::from_mode(0o600)).expect("set");
    fs::write(node.key_file(), "no key").expect("written");
    assert!(told().contains("no private key"), "{}", told());
}

#[test]
fn a_plugins_files_are_its_own_and_whole() {
    let node = Node::new();
    let issued = node.authority().issue("a", "01").expect("issued");
    let directory = tempfile::tempdir().expect("made");
    let given = Mutex::new(Vec::new());
    let give = |path: &Path| {
        given.lock().push(path.to_path_buf());
        Ok(())
    };
    issued.write(directory.path(), give).expect("written");
    for (_, name) in FILES {
        let path = directory.path().join(name);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o400);
        assert!(given.lock().contains(&path));
    }
    issued.write(directory.path(), |_| Ok(())).expect_err("nothing is written over");
}
