//! A plugin's place in the run directory: its sockets, and what it may write to. Directories may be
//! slow and full: all here blocks, and is called where that is allowed.

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

use launcher::JailSpec;
use protocol::manifest::Listen;

use crate::{
    allowance::Allowance,
    config::HostConfig,
    permissions::Access,
    plan::{self, Paths},
    process::StartFailure,
    seat::Seat,
    source::Program,
    status::MeshDoor,
    tls::{Authority, Issued},
};

/// One instance's place, and what is known of it before it runs.
#[derive(Clone)]
pub(super) struct Place {
    pub(super) paths: Paths,
    pub(super) config: Arc<HostConfig>,
    pub(super) program: Arc<Program>,
    pub(super) seat: Seat,
    pub(super) access: Arc<Access>,
    pub(super) authority: Arc<Authority>,
}

/// What a jail begins with.
pub(super) struct Prepared {
    pub(super) spec: JailSpec,
    pub(super) listener: Option<OwnedFd>,
    /// Those of its control groups.
    pub(super) layers: Vec<String>,
    /// Its certificate, where it listens with TLS.
    pub(super) issued: Option<Issued>,
}

impl Place {
    /// Makes sockets and control groups of a run, and says what its jail shall be.
    pub(super) fn prepare(
        &self,
        allowance: &Allowance,
        instance: &str,
    ) -> Result<Prepared, StartFailure> {
        let listener = self.prepare_sockets().map_err(|error| {
            StartFailure::new("sockets", format!("{}: {error}", self.paths.directory.display()))
        })?;
        let issued = self.prepare_tls(instance).map_err(|error| StartFailure::new("tls", error))?;
        let granted = self.access.granted();
        let mut spec = plan::jail(&self.config, &self.program, &self.seat, granted, instance);
        let allotted = allowance.begin().map_err(|error| StartFailure::new("cgroup", error))?;
        let layers = allotted.apply(&mut spec);
        Ok(Prepared { spec, listener, layers, issued })
    }

    /// Makes the plugin's directory and opens the mesh to it.
    pub(super) fn open_door(&self, door: &dyn MeshDoor) -> io::Result<Box<dyn Send>> {
        let _ = fs::remove_dir_all(&self.paths.directory);
        private_directory(&self.paths.directory)?;
        let listener = self.bind(&self.paths.mesh_socket())?;
        Ok(door.open(&self.seat.plugin, Arc::clone(&self.access), listener))
    }

    /// Leaves a clean place for the plugin's socket, and binds it where the host does that.
    fn prepare_sockets(&self) -> io::Result<Option<OwnedFd>> {
        let own = self.paths.own();
        let _ = fs::remove_dir_all(&own);
        private_directory(&own)?;
        self.give(&own)?;
        if self.program.state {
            self.prepare_state()?;
        }
        let listen = self.program.manifest.listen;
        match listen {
            Listen::Fd => {
                let path = self.paths.plugin_socket(listen);
                let _ = fs::remove_file(&path);
                let listener = self.bind(&path)?;
                // The program decides for itself whether it blocks.
                listener.set_nonblocking(false)?;
                Ok(Some(listener.into()))
            }
            Listen::Tcp(port) | Listen::Tls(port) if self.shares_network() => {
                // Somebody else's server on that port must not be taken for the plugin.
                std::net::TcpListener::bind(("127.0.0.1", port)).map(|_| None)
            }
            Listen::Unix | Listen::Tcp(_) | Listen::Tls(_) => Ok(None),
        }
    }

    /// A certificate of this run's own, with its key, where it listens with TLS. Those of the run
    /// before are gone.
    fn prepare_tls(&self, instance: &str) -> io::Result<Option<Issued>> {
        let Listen::Tls(_) = self.program.manifest.listen else { return Ok(None) };
        let directory = self.paths.tls();
        let _ = fs::remove_dir_all(&directory);
        let issued = self.authority.issue(self.program.manifest.name.as_str(), instance)?;
        private_directory(&directory)?;
        issued.write(&directory, |path| self.give(path))?;
        self.give(&directory)?;
        Ok(Some(issued))
    }

    /// What it kept before is its own again, also where its id is another than it was: that
    /// follows from the run directory.
    fn prepare_state(&self) -> io::Result<()> {
        let state = &self.paths.state;
        private_directory(state)?;
        match plan::outside_id(&self.config, &self.seat.key()) {
            Some(id) => give_all(state, id),
            None => Ok(()),
        }
    }

    fn shares_network(&self) -> bool {
        plan::shares_network(&self.config, self.access.granted())
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
        match plan::outside_id(&self.config, &self.seat.key()) {
            Some(id) => std::os::unix::fs::chown(path, Some(id), Some(id)),
            None => Ok(()),
        }
    }

    /// Removes all that it has there.
    pub(super) fn remove(&self) {
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
