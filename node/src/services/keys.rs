//! Identities on disk: one file each, in the service's own state directory.
//!
//! An identity is told only after its file is whole on disk. Refuses to remember what the disk did
//! not take.
//!
//! Mode 0600 in a directory that only the service's user can open. Seeds are not encrypted: a
//! service that starts by itself would have to keep the key to them beside them.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
};

use protocol::id::NodeKey;
use serde_json::{Value, json};

use crate::durable::{ASIDE, write_private};

/// Bytes of one file: a name of 64 characters, escaped, and 64 digits.
const FILE_BYTES_MAX: u64 = 4_096;

/// Identities that one node holds; each is a name and 32 bytes, all of them in memory, and a file.
/// The host ends a plugin whose directories hold more than [`plugin_host::DISK_ENTRIES_MAX`].
pub const IDENTITIES_MAX: usize = 8_192;
const _: () = assert!(IDENTITIES_MAX < plugin_host::DISK_ENTRIES_MAX);

/// Characters of a name.
pub const NAME_CHARS_MAX: usize = 64;

/// All identities, by name.
pub struct Keys {
    /// `None` where the service was given no place: they end with it, and it says so.
    directory: Option<PathBuf>,
    by_name: BTreeMap<String, NodeKey>,
}

/// Why an identity was not made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("a name has 1 to {NAME_CHARS_MAX} characters, none of them a control character")]
    Name,
    #[error("there is an identity {0} already")]
    Taken(String),
    #[error("this node holds {IDENTITIES_MAX} identities, and no more")]
    Full,
    #[error("the identity could not be written to disk, and was not made: {0}")]
    Disk(#[from] io::Error),
}

impl Keys {
    /// Reads what is there. A file that cannot be understood is an error: its identity would else
    /// be made a second time, with another key.
    pub fn open(directory: Option<PathBuf>) -> io::Result<Self> {
        let mut by_name = BTreeMap::new();
        if let Some(directory) = &directory {
            fs::DirBuilder::new().mode(0o700).recursive(true).create(directory)?;
            for entry in fs::read_dir(directory)? {
                let path = entry?.path();
                match path.extension().and_then(|end| end.to_str()) {
                    Some("key") => {
                        let (name, key) = read(&path)?;
                        by_name.insert(name, key);
                    }
                    // A write that never came to its end was never told either.
                    Some(ASIDE) => fs::remove_file(&path)?,
                    _ => {}
                }
            }
        }
        Ok(Self { directory, by_name })
    }

    /// Whether identities outlive this process.
    pub fn is_durable(&self) -> bool {
        self.directory.is_some()
    }

    pub fn get(&self, name: &str) -> Option<&NodeKey> {
        self.by_name.get(name)
    }

    pub fn all(&self) -> impl Iterator<Item = (&String, &NodeKey)> {
        self.by_name.iter()
    }

    /// Adds one. On disk when this returns.
    pub fn add(&mut self, name: &str, key: NodeKey) -> Result<(), KeyError> {
        let chars = name.chars().count();
        if chars == 0 || chars > NAME_CHARS_MAX || name.chars().any(char::is_control) {
            return Err(KeyError::Name);
        }
        if self.by_name.contains_key(name) {
            return Err(KeyError::Taken(name.into()));
        }
        if self.by_name.len() >= IDENTITIES_MAX {
            return Err(KeyError::Full);
        }
        if let Some(directory) = &self.directory {
            write(directory, name, &key)?;
        }
        self.by_name.insert(name.into(), key);
        Ok(())
    }
}

fn write(directory: &Path, name: &str, key: &NodeKey) -> io::Result<()> {
    // Named after the key, for a name may have a slash.
    let path = directory.join(format!("{}.key", key.peer_id()));
    let text = json!({ "v": 1, "name": name, "seed": hex(&key.seed()) }).to_string();
    write_private(&path, text.as_bytes())
}

fn read(path: &Path) -> io::Result<(String, NodeKey)> {
    let wrong = |what: &str| {
        let text = format!("{}: {what}; restore it, or move it away", path.display());
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    if fs::metadata(path)?.len() > FILE_BYTES_MAX {
        return Err(wrong("it is too large for an identity"));
    }
    let value: Value =
        serde_json::from_slice(&fs::read(path)?).map_err(|_| wrong("it is no JSON"))?;
    if value["v"] != 1 {
        return Err(wrong("it was written by a later version"));
    }
    let name = value["name"].as_str().ok_or_else(|| wrong("it has no name"))?;
    let seed = value["seed"].as_str().and_then(seed).ok_or_else(|| wrong("it has no seed"))?;
    Ok((name.into(), NodeKey::from_seed(seed)))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn seed(text: &str) -> Option<[u8; 32]> {
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let mut seed = [0; 32];
    for (at, byte) in seed.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(seed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn key(seed: u8) -> NodeKey {
        NodeKey::from_seed([seed; 32])
    }

    #[test]
    fn identities_outlive_the_service_and_belong_to_it_alone() {
        let directory = tempfile::tempdir().expect("made");
        let place = || Some(directory.path().join("identities"));
        let mut keys = Keys::open(place()).expect("opens");
        keys.add("ada/../x", key(7)).expect("made");
        drop(keys);
        let mut keys = Keys::open(place()).expect("opens");
        assert_eq!(keys.get("ada/../x").expect("there").peer_id(), key(7).peer_id());
        assert!(matches!(keys.add("ada/../x", key(8)), Err(KeyError::Taken(_))));
        for entry in fs::read_dir(place().expect("given")).expect("there") {
            let mode = entry.expect("read").metadata().expect("there").permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }

    #[test]
    fn what_the_disk_did_not_take_was_not_made() {
        let directory = tempfile::tempdir().expect("made");
        let place = directory.path().join("identities");
        let mut keys = Keys::open(Some(place.clone())).expect("opens");
        fs::remove_dir(&place).expect("removed");
        assert!(matches!(keys.add("ada", key(7)), Err(KeyError::Disk(_))));
        assert!(keys.get("ada").is_none());
    }

    #[test]
    fn a_broken_file_is_told_and_a_half_written_one_was_never_told() {
        let directory = tempfile::tempdir().expect("made");
        fs::write(directory.path().join("x.new"), "half").expect("written");
        assert!(Keys::open(Some(directory.path().into())).expect("opens").all().next().is_none());
        for text in ["", "{}", r#"{"v":2}"#, r#"{"v":1,"name":"a","seed":"zz"}"#] {
            fs::write(directory.path().join("x.key"), text).expect("written");
            let told = Keys::open(Some(directory.path().into())).err().expect("refused");
            assert!(told.to_string().contains("x.key"), "{told}");
        }
    }
}
