//! A plugin's place in the run directory: its sockets, and what it may write to.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::{
            fs::{DirBuilderExt, PermissionsExt},
            net::UnixListener,
        },
    },
    path::Path,
    sync::Arc,
};

use protocol::manifest::Listen;

use super::Supervisor;
use crate::plan;

impl Supervisor {
    /// Makes the plugin's directory and opens the mesh to it.
    pub(super) fn open_door(&self) -> io::Result<Box<dyn Send>> {
        let _ = fs::remove_dir_all(&self.paths.directory);
        private_directory(&self.paths.directory)?;
        let listener = self.bind(&self.paths.mesh_socket())?;
        let access = Arc::clone(&self.context.access);
        Ok(self.context.door.open(&self.context.seat.plugin, access, listener))
    }

    /// Leaves a clean place for the plugin's socket, and binds it where the host does that.
    pub(super) fn prepare_sockets(&self) -> io::Result<Option<OwnedFd>> {
        let own = self.paths.own();
        let _ = fs::remove_dir_all(&own);
        private_directory(&own)?;
        self.give(&own)?;
        if self.context.program.state {
            self.prepare_state()?;
        }
        let listen = self.context.program.manifest.listen;
        match listen {
            Listen::Fd => {
                let path = self.paths.plugin_socket(listen);
                let _ = fs::remove_file(&path);
                let listener = self.bind(&path)?;
                // The program decides for itself whether it blocks.
                listener.set_nonblocking(false)?;
                Ok(Some(listener.into()))
            }
            Listen::Tcp(port) if self.shares_network() => {
                // Somebody else's server on that port must not be taken for the plugin.
                std::net::TcpListener::bind(("127.0.0.1", port)).map(|_| None)
            }
            Listen::Unix | Listen::Tcp(_) => Ok(None),
        }
    }

    /// What it kept before is its own again, also where its id is another than it was: that
    /// follows from the run directory.
    fn prepare_state(&self) -> io::Result<()> {
        let state = &self.paths.state;
        private_directory(state)?;
        match plan::outside_id(&self.context.config, &self.context.seat.key()) {
            Some(id) => give_all(state, id),
            None => Ok(()),
        }
    }

    fn shares_network(&self) -> bool {
        plan::shares_network(&self.context.config, self.context.access.granted())
    }

    fn bind(&self, path: &Path) -> io::Result<UnixListener> {
        let listener = UnixListener::bind(path)?;
        listener.set_nonblocking(true)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        self.give(path)?;
        Ok(listener)
    }

    /// Makes `path` the plugin's, where it has an id of its own.
    fn give(&self, path: &Path) -> io::Result<()> {
        match plan::outside_id(&self.context.config, &self.context.seat.key()) {
            Some(id) => std::os::unix::fs::chown(path, Some(id), Some(id)),
            None => Ok(()),
        }
    }

    pub(super) fn remove_files(&self) {
        if let Err(error) = fs::remove_dir_all(&self.paths.directory) {
            tracing::warn!(path = %self.paths.directory.display(), %error, "cannot remove");
        }
    }
}

/// Gives `path` and all below it to `id`. Links are given, not followed; nobody else writes there
/// while its plugin does not run.
fn give_all(path: &Path, id: u32) -> io::Result<()> {
    if fs::symlink_metadata(path)?.is_dir() {
        for entry in fs::read_dir(path)? {
            give_all(&entry?.path(), id)?;
        }
    }
    std::os::unix::fs::lchown(path, Some(id), Some(id))
}

pub(crate) fn private_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).recursive(true).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}
