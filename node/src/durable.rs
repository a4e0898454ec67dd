//! Files that only their owner reads, and that are whole or not there.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// How a file's name ends while it is written. One that stays was never told to anybody.
pub const ASIDE: &str = "new";

/// Writes a new file: aside, flushed, renamed, and its directory flushed. Where that fails nothing
/// is at `path`, neither now nor after a restart.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let aside = path.with_extension(ASIDE);
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    // What a crash has left of an earlier try.
    let _ = fs::remove_file(&aside);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&aside)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&aside, path))
        .and_then(|()| File::open(directory)?.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(&aside);
        let _ = fs::remove_file(path);
    }
    written
}
