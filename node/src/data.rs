//! A node's directories: the data directory with its identity and its lock, the run directory with
//! its sockets. Owns who may read them. Refuses a directory that another node uses.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use protocol::id::NodeKey;
use rustix::fs::{FlockOperation, flock};

use crate::durable::write_private;

/// A data directory in use by this process. The lock ends with the value, and with the process
/// however that ends.
#[derive(Debug)]
pub struct DataDir {
    path: PathBuf,
    _lock: File,
}

/// Longest path of a Unix socket, terminating zero excluded (`sun_path`, unix(7)).
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What libp2p writes before an ed25519 key pair: type ed25519, 64 bytes.
const KEY_PREFIX: [u8; 4] = [0x08, 0x01, 0x12, 0x40];

impl DataDir {
    /// Opens or creates the directory and takes its lock.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        private_dir(path)?;
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(|cause| DataError::Io { path: lock_path.clone(), cause })?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            return Err(DataError::InUse { path: path.into(), pid: holder.trim().into() });
        }
        lock.set_len(0)
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .map_err(|cause| DataError::Io { path: lock_path, cause })?;
        Ok(Self { path: path.into(), _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The node's key, made at the first start. The file has libp2p's private key encoding, so
    /// that other libp2p programs can read it.
    pub fn identity(&self) -> Result<NodeKey, DataError> {
        let path = self.path.join("identity.key");
        match OpenOptions::new().read(true).open(&path) {
            Ok(file) => read_identity(file, &path),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => create_identity(&path),
            Err(cause) => Err(DataError::Io { path, cause }),
        }
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        // Only tidiness: the lock is the descriptor, not the file.
        let _ = fs::remove_file(self.path.join("lock"));
    }
}

/// Creates `path` for its owner alone, or checks that it is.
pub fn private_dir(path: &Path) -> Result<(), DataError> {
    let fail = |cause| DataError::Io { path: path.into(), cause };
    match fs::metadata(path) {
        Ok(found) if !found.is_dir() => Err(fail(io::ErrorKind::NotADirectory.into())),
        Ok(found) => {
            if found.uid() == rustix::process::geteuid().as_raw() && found.mode() & 0o077 != 0 {
                fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(fail)?;
            }
            Ok(())
        }
        Err(_) => DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(fail),
    }
}

/// Prepares the run directory: private, free of an earlier node's sockets, its paths short enough.
pub fn prepare_run_dir(path: &Path) -> Result<(), DataError> {
    let longest = path.join("admin.sock").as_os_str().len();
    if longest > SOCKET_PATH_BYTES_MAX {
        return Err(DataError::PathTooLong { path: path.into(), bytes: longest });
    }
    private_dir(path)?;
    for name in ["admin.sock", "mesh.sock"] {
        match fs::remove_file(path.join(name)) {
            Err(cause) if cause.kind() != io::ErrorKind::NotFound => {
                return Err(DataError::Io { path: path.join(name), cause });
            }
            _ => {}
        }
    }
    Ok(())
}

fn read_identity(mut file: File, path: &Path) -> Result<NodeKey, DataError> {
    let fail = |cause| DataError::Io { path: path.into(), cause };
    let mode = file.metadata().map_err(fail)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(DataError::KeyReadable { path: path.into(), mode });
    }
    let mut bytes = Vec::with_capacity(68);
    Read::by_ref(&mut file).take(1_024).read_to_end(&mut bytes).map_err(fail)?;
    let damaged = || DataError::KeyDamaged { path: path.into() };
    let pair = bytes.strip_prefix(&KEY_PREFIX).ok_or_else(damaged)?;
    let (seed, public) = pair.split_at_checked(32).ok_or_else(damaged)?;
    let key = NodeKey::from_seed(seed.try_into().map_err(|_| damaged())?);
    let own = key.peer_id().verifying_key().ok_or_else(damaged)?;
    if own.as_bytes() == public { Ok(key) } else { Err(damaged()) }
}

fn create_identity(path: &Path) -> Result<NodeKey, DataError> {
    let fail = |cause| DataError::Io { path: path.into(), cause };
    let key = NodeKey::from_seed(rand::random());
    let public = key.peer_id().verifying_key().expect("made from an ed25519 key");
    let pair = [&KEY_PREFIX[..], &key.seed(), public.as_bytes()].concat();
    write_private(path, &pair).map_err(fail)?;
    Ok(key)
}

/// A directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The system refuses.
    #[error(
        "cannot use {path}: {cause}; give another place with --data-dir or --run-dir, or mend its permissions"
    )]
    Io {
        /// Where.
        path: PathBuf,
        /// What it says.
        cause: io::Error,
    },
    /// Another node has it.
    #[error(
        "{path} is in use by another node (pid {pid}); stop it, or give this one its own --data-dir"
    )]
    InUse {
        /// Which directory.
        path: PathBuf,
        /// Who holds it.
        pid: String,
    },
    /// Others can read the node's key.
    #[error("{path} has mode {mode:o}, so others can read the node's key; run: chmod 600 {path}")]
    KeyReadable {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The key file is not one.
    #[error(
        "{path} is damaged: it does not hold an ed25519 key pair. Restore it from a backup; or move it away, and the node gets a new identity"
    )]
    KeyDamaged {
        /// Which file.
        path: PathBuf,
    },
    /// Sockets would not fit.
    #[error(
        "the run directory {path} is too long: its sockets' paths take {bytes} bytes of at most {SOCKET_PATH_BYTES_MAX}; give a shorter --run-dir"
    )]
    PathTooLong {
        /// Which directory.
        path: PathBuf,
        /// How long.
        bytes: usize,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_kept_and_private() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("node");
        let first = DataDir::open(&path).expect("fresh").identity().expect("made");
        let second = DataDir::open(&path).expect("again").identity().expect("kept");
        assert_eq!(first.peer_id(), second.peer_id());
        let mode = fs::metadata(path.join("identity.key")).expect("there").mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_key_that_others_can_read_and_a_damaged_one_are_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let data = DataDir::open(dir.path()).expect("fresh");
        data.identity().expect("made");
        let key = dir.path().join("identity.key");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(data.identity(), Err(DataError::KeyReadable { mode: 0o644, .. })));
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).expect("chmod");
        fs::write(&key, b"nonsense").expect("write");
        assert!(matches!(data.identity(), Err(DataError::KeyDamaged { .. })));
    }

    #[test]
    fn two_nodes_cannot_share_a_directory() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let _held = DataDir::open(dir.path()).expect("first");
        let error = DataDir::open(dir.path()).expect_err("second").to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    }
}
