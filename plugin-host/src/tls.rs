//! Certificates of plugins: an authority that is this node's alone, and what it issues.
//!
//! The authority's key is a file of the node's data directory, made when first wanted. Its own
//! certificate is made anew by each host, under the same name and key. A plugin that listens with
//! TLS gets at each start a fresh key and a certificate for it, which only this start ever has;
//! so does the host, for its side of the connections to this run. Both last a year: a start is the
//! renewal.
//!
//! A plugin's certificate is good for serving only. With one that is good for clients, too, it
//! could pose as the node to its siblings.
//!
//! Refuses: keys that others can read, and to trust any certificate because of who issued it. The
//! host asks for exactly the one that it issued for the run.

mod connect;

use std::{
    fmt::Write as _,
    fs, io,
    io::{Read, Write as _},
    net::{IpAddr, Ipv4Addr},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::ClientConfig;
use sha2::{Digest, Sha256};

use crate::status::Certificate;

pub(crate) use connect::connect;

/// Of each of a plugin's files: the variable that names it, and its name.
pub(crate) const FILES: [(&str, &str); 3] =
    [("BH_TLS_CERT", CERTIFICATE), ("BH_TLS_KEY", KEY), ("BH_TLS_CA", AUTHORITY)];
const CERTIFICATE: &str = "cert.pem";
const KEY: &str = "key.pem";
const AUTHORITY: &str = "ca.pem";

/// The authority's key in the node's data directory.
const AUTHORITY_KEY: &str = "plugin-ca.key";

/// Bytes of a key's file; one of P-256 has 241.
const KEY_BYTES_MAX: u64 = 4_096;

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// How long what is issued at a start lasts.
const LASTS: Duration = DAY.saturating_mul(365);

/// How long the authority's own certificate lasts, which every start of a node renews.
const AUTHORITY_LASTS: Duration = DAY.saturating_mul(10 * 365);

/// How far clocks may be behind that look at a certificate which was issued just now.
const LEEWAY: Duration = Duration::from_secs(60 * 60);

/// Who issues certificates to this node's plugins.
pub(crate) struct Authority {
    key_file: PathBuf,
    /// Once it was wanted.
    open: Mutex<Option<Arc<Issuer>>>,
}

/// The authority's key, and its certificate.
struct Issuer {
    key: KeyPair,
    certificate: rcgen::Certificate,
}

/// What was issued for one run.
pub(crate) struct Issued {
    /// For the plugin's status.
    pub(crate) shown: Certificate,
    /// How the host connects to the run.
    pub(crate) client: Arc<ClientConfig>,
    /// The plugin's files, by name.
    files: [(&'static str, String); 3],
}

/// What the other side of a certificate is for.
#[derive(Clone, Copy)]
enum Use<'a> {
    /// A plugin, in one of its runs.
    Plugin { name: &'a str, instance: &'a str },
    /// The host.
    Host,
}

impl Authority {
    /// That of the node with this data directory. Nothing is read or made before it is wanted.
    pub(crate) fn of(data_dir: &Path) -> Self {
        Self { key_file: data_dir.join(AUTHORITY_KEY), open: Mutex::new(None) }
    }

    /// Issues what the run `instance` of the plugin `name` needs. Blocks.
    pub(crate) fn issue(&self, name: &str, instance: &str) -> io::Result<Issued> {
        let issuer = self.issuer()?;
        let now = SystemTime::now();
        let (certificate, key) = issuer.issue(Use::Plugin { name, instance }, now)?;
        let client = connect::client(certificate.der().clone(), issuer.issue(Use::Host, now)?)?;
        Ok(Issued {
            shown: Certificate {
                fingerprint: fingerprint(certificate.der()),
                expires: whole_second(now + LASTS),
            },
            client: Arc::new(client),
            files: [
                (CERTIFICATE, certificate.pem()),
                (KEY, key.serialize_pem()),
                (AUTHORITY, issuer.certificate.pem()),
            ],
        })
    }

    fn issuer(&self) -> io::Result<Arc<Issuer>> {
        let mut open = self.open.lock();
        if let Some(issuer) = &*open {
            return Ok(Arc::clone(issuer));
        }
        let named = |error: io::Error| {
            let text = format!("{}: {error}", self.key_file.display());
            io::Error::new(error.kind(), text)
        };
        let issuer = Arc::new(Issuer::open(&self.key_file).map_err(named)?);
        Ok(Arc::clone(open.insert(issuer)))
    }
}

impl Issuer {
    fn open(key_file: &Path) -> io::Result<Self> {
        let key = match fs::File::open(key_file) {
            Ok(file) => read_key(file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(key_file)?,
            Err(error) => return Err(error),
        };
        let mut params = params("Blackhole plugin authority", SystemTime::now(), AUTHORITY_LASTS);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).map_err(io::Error::other)?;
        Ok(Self { key, certificate })
    }

    /// A certificate of a fresh key.
    fn issue(&self, of: Use<'_>, now: SystemTime) -> io::Result<(rcgen::Certificate, KeyPair)> {
        let key = KeyPair::generate().map_err(io::Error::other)?;
        let (name, usage) = match of {
            Use::Plugin { name, .. } => (name, ExtendedKeyUsagePurpose::ServerAuth),
            Use::Host => ("Blackhole node", ExtendedKeyUsagePurpose::ClientAuth),
        };
        let mut params = params(name, now, LASTS);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        if let Use::Plugin { name, instance } = of {
            for name in [name, instance, "localhost"] {
                let name = name.try_into().map_err(io::Error::other)?;
                params.subject_alt_names.push(SanType::DnsName(name));
            }
            let loopback = SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST));
            params.subject_alt_names.push(loopback);
        }
        let signed = params.signed_by(&key, &self.certificate, &self.key);
        Ok((signed.map_err(io::Error::other)?, key))
    }
}

impl Issued {
    /// Writes the plugin's files into `directory`; `give` makes each the plugin's.
    pub(crate) fn write(
        &self,
        directory: &Path,
        give: impl Fn(&Path) -> io::Result<()>,
    ) -> io::Result<()> {
        for (name, text) in &self.files {
            let path = directory.join(name);
            // Nobody writes to it again, its plugin neither.
            let mut file = new_file(0o400).open(&path)?;
            file.write_all(text.as_bytes())?;
            give(&path)?;
        }
        Ok(())
    }
}

fn params(name: &str, now: SystemTime, lasts: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    let at = |time: SystemTime| {
        let since = whole_second(time).duration_since(UNIX_EPOCH).unwrap_or_default();
        rcgen::date_time_ymd(1970, 1, 1) + since
    };
    params.not_before = at(now - LEEWAY);
    params.not_after = at(now + lasts);
    params
}

/// Certificates count seconds.
fn whole_second(time: SystemTime) -> SystemTime {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}

fn fingerprint(der: &[u8]) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(der) {
        let colon = if text.is_empty() { "" } else { ":" };
        let _ = write!(text, "{colon}{byte:02X}");
    }
    text
}

fn read_key(mut file: fs::File) -> io::Result<KeyPair> {
    let mode = file.metadata()?.mode() & 0o777;
    if mode & 0o077 != 0 {
        let text = format!(
            "others can read this private key (mode {mode:o}); make it private (chmod 600), or \
             remove it, and the next start makes another"
        );
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
    }
    let mut text = String::new();
    Read::by_ref(&mut file).take(KEY_BYTES_MAX).read_to_string(&mut text)?;
    KeyPair::from_pem(&text).map_err(|error| {
        let text = format!(
            "it is no private key ({error}); restore it, or remove it, and the next start makes \
             another"
        );
        io::Error::new(io::ErrorKind::InvalidData, text)
    })
}

/// A new key on disk. Written aside, synced, then renamed: a crash leaves none or a whole one.
fn make_key(path: &Path) -> io::Result<KeyPair> {
    let key = KeyPair::generate().map_err(io::Error::other)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let aside = path.with_extension("new");
    let _ = fs::remove_file(&aside);
    let mut file = new_file(0o600).open(&aside)?;
    file.write_all(key.serialize_pem().as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    fs::File::open(directory)?.sync_all()?;
    Ok(key)
}

fn new_file(mode: u32) -> fs::OpenOptions {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true).mode(mode);
    options
}

#[cfg(test)]
mod tests;
