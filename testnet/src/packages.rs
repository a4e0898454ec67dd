//! Plugins made ready to load: a directory each, with a manifest and an executable.
//!
//! First-party plugins are put together once, beside the executables, and shared by every test;
//! what a test wants to be different it makes in its own directory. Files are linked, not copied:
//! a plugin costs no disk.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context, Result};

use crate::binaries;

/// The first-party plugins.
pub const FIRST_PARTY: [&str; 4] = ["echo", "counter", "kv", "misfit"];

/// The directory of the first-party plugin `name`, as one gives it to `blackhole plugin load`.
pub fn plugin(name: &str) -> Result<PathBuf> {
    /// What this process has made sure of; tests run side by side.
    static READY: Mutex<BTreeMap<String, PathBuf>> = Mutex::new(BTreeMap::new());
    let mut ready = READY.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(dir) = ready.get(name) {
        return Ok(dir.clone());
    }
    let dir = prepare(name).with_context(|| format!("cannot prepare the plugin {name}"))?;
    ready.insert(name.to_owned(), dir.clone());
    Ok(dir)
}

/// All first-party plugins: `(name, directory)`.
pub fn first_party() -> Result<Vec<(&'static str, PathBuf)>> {
    FIRST_PARTY.into_iter().map(|name| Ok((name, plugin(name)?))).collect()
}

/// A plugin of its own in `<parent>/<name>`: the executable of the first-party plugin `like` under
/// a manifest with these further lines.
pub fn variant(parent: &Path, name: &str, like: &str, lines: &str) -> Result<PathBuf> {
    let dir = parent.join(name);
    fs::create_dir_all(&dir)?;
    link(&binaries::find(like)?, &dir.join(like))?;
    let manifest = format!("name: {name}\nversion: 1.0.0\nentrypoint: ./{like}\n{lines}\n");
    fs::write(dir.join("plugin.yaml"), manifest)?;
    Ok(dir)
}

/// `misfit` with tricks to begin with, and further lines for its manifest.
pub fn misfit(parent: &Path, name: &str, tricks: &[&str], lines: &str) -> Result<PathBuf> {
    let lines = format!("args: {}\n{lines}", serde_json::to_string(tricks)?);
    variant(parent, name, "misfit", &lines)
}

/// Puts the plugin's directory together, unless it is there and up to date.
fn prepare(name: &str) -> Result<PathBuf> {
    let executable = binaries::find(name)?;
    let manifest = binaries::repository().join("plugins").join(name).join("plugin.yaml");
    let manifest = fs::read(&manifest).with_context(|| format!("no {}", manifest.display()))?;
    let parent = binaries::directory()?.join("plugins");
    let dir = parent.join(name);
    if is_current(&dir, name, &executable, &manifest) {
        return Ok(dir);
    }
    // Made aside and renamed: whoever else looks sees all of it or none.
    fs::create_dir_all(&parent)?;
    let aside = tempfile::Builder::new().prefix(".new-").tempdir_in(&parent)?;
    let fresh = aside.path().join(name);
    fs::create_dir(&fresh)?;
    fs::write(fresh.join("plugin.yaml"), &manifest)?;
    link(&executable, &fresh.join(name))?;
    let _ = fs::rename(&dir, aside.path().join("old"));
    match fs::rename(&fresh, &dir) {
        Ok(()) => Ok(dir),
        // Another program was quicker.
        Err(_) if is_current(&dir, name, &executable, &manifest) => Ok(dir),
        Err(error) => Err(error.into()),
    }
}

fn is_current(dir: &Path, name: &str, executable: &Path, manifest: &[u8]) -> bool {
    let stamp = |path: &Path| {
        let meta = fs::metadata(path).ok()?;
        Some((meta.len(), meta.mtime(), meta.mtime_nsec()))
    };
    let same = stamp(executable).is_some() && stamp(executable) == stamp(&dir.join(name));
    same && fs::read(dir.join("plugin.yaml")).is_ok_and(|found| found == manifest)
}

/// A second name for `from`; a copy where the file system will not.
fn link(from: &Path, to: &Path) -> Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(_) => {
            fs::copy(from, to)?;
            let modified = fs::metadata(from)?.modified()?;
            fs::File::options().write(true).open(to)?.set_modified(modified)?;
            Ok(())
        }
    }
}
