//! Whose a subtree is: its host holds a lock on the directory, which the kernel drops with the
//! host, however that ends. So a host knows what is left of others from what is theirs.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::{KILL_PATIENCE, LOOK_FIRST, is_directory, make_directory, remove};

/// How long a directory that is just being removed by another may take to be free.
const CLAIM_PATIENCE: Duration = Duration::from_secs(1);

/// How a host's subtree is called; twelve hexadecimal digits follow.
pub(super) const PREFIX: &str = "blackhole-";

/// A subtree that is this host's until this is dropped.
#[derive(Debug)]
pub(super) struct Claim {
    _lock: File,
}

/// Makes an empty directory at `base` that is this host's, and ends whatever a host that is gone
/// left in it. That of a host that lives is refused.
pub(super) fn claim(base: &Path) -> io::Result<Claim> {
    let deadline = Instant::now() + CLAIM_PATIENCE;
    loop {
        make_directory(base)?;
        // Between any two steps a host that cleans up may take the directory away.
        if let Some(lock) = lock(base)? {
            for entry in fs::read_dir(base)?.flatten().filter(is_directory) {
                remove(&entry.path(), KILL_PATIENCE)?;
            }
            return Ok(Claim { _lock: lock });
        }
        if Instant::now() > deadline {
            let text = "another host with the same run directory uses it";
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
        }
        std::thread::sleep(LOOK_FIRST);
    }
}

/// Removes the subtrees beside `base` whose hosts are gone, as far as they have no processes:
/// those end with their host, or when it comes up again.
pub(super) fn sweep(base: &Path) {
    let Some(parent) = base.parent() else { return };
    for entry in fs::read_dir(parent).into_iter().flatten().flatten().filter(is_directory) {
        let path = entry.path();
        let name = entry.file_name();
        if path == base || !name.to_str().is_some_and(is_subtree) {
            continue;
        }
        if let Ok(Some(_lock)) = lock(&path)
            && let Err(error) = remove_empty(&path)
        {
            tracing::debug!(path = %path.display(), %error, "a control group is left");
        }
    }
}

fn is_subtree(name: &str) -> bool {
    name.strip_prefix(PREFIX).is_some_and(|number| {
        number.len() == 12 && number.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

/// Locks the directory; `None` where somebody else has, or where it is not there any more.
fn lock(directory: &Path) -> io::Result<Option<File>> {
    let gone = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => Ok(None),
        _ => Err(error),
    };
    let file = match File::open(directory) {
        Ok(file) => file,
        Err(error) => return gone(error),
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    match fs::metadata(directory) {
        Ok(now) if now.ino() == file.metadata()?.ino() => Ok(Some(file)),
        Ok(_) => Ok(None),
        Err(error) => gone(error),
    }
}

/// Removes what has no processes. The kernel refuses to remove what has.
fn remove_empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)?.flatten().filter(is_directory) {
        remove_empty(&entry.path())?;
    }
    fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subtree_is_one_hosts_until_that_is_gone() {
        let parent = tempfile::tempdir().expect("made");
        let mine = parent.path().join("blackhole-0123456789ab");
        let held = claim(&mine).expect("nobody has it");
        fs::create_dir(mine.join("tenant")).expect("made");
        let error = claim(&mine).expect_err("it is another's");
        assert_eq!(error.kind(), io::ErrorKind::ResourceBusy);
        assert!(mine.join("tenant").exists(), "what is another's is left alone");
        fs::remove_dir(mine.join("tenant")).expect("empty");
        drop(held);
        claim(&mine).expect("it is free");
    }

    #[test]
    fn only_what_dead_hosts_left_is_swept() {
        let parent = tempfile::tempdir().expect("made");
        let at = |name: &str| parent.path().join(name);
        let (mine, alive) = (at("blackhole-00000000000a"), at("blackhole-00000000000b"));
        let _held = [claim(&mine).expect("free"), claim(&alive).expect("free")];
        let dead = at("blackhole-00000000000c");
        let others = [at("blackhole-node"), at("blackhole-00000000000cd"), at("somebody")];
        for directory in others.iter().chain([&dead.join("@shop").join("tenant")]) {
            fs::create_dir_all(directory).expect("made");
        }
        sweep(&mine);
        assert!(!dead.exists());
        for left in others.iter().chain([&mine, &alive]) {
            assert!(left.exists(), "{}", left.display());
        }
    }
}
