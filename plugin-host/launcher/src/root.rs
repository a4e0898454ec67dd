//! The private root: a tmpfs that shows what the spec lists and nothing else.
//!
//! Sources are opened as detached copies of mounts before the id changes and before anything is
//! mounted, so that no path is looked up twice and nothing mounted here can hide a source.

use std::{
    collections::{HashMap, hash_map::Entry},
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink},
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, openat2},
    io::Errno,
    mount::{
        MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount,
        mount_change, mount_remount, move_mount, open_tree, unmount,
    },
    process::{Pid, WaitOptions, waitpid},
};

use crate::{
    jail::{Layer, Refusal},
    spec::{Bind, JailSpec, RootSpec},
    sys::{self, Fork, MountChange},
};

const LAYER: &str = "private-root";

/// Where the new root is built: a directory that every system has. It is covered in this jail's
/// own mount namespace only, after every source was opened.
const BUILDING_SITE: &str = "/tmp";

/// The device files a program may count on.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Detached copies of the sources.
pub(crate) struct Trees {
    binds: Vec<(Bind, OwnedFd, bool)>,
    devices: Vec<(&'static str, OwnedFd)>,
    _holders: Holders,
}

impl Trees {
    /// Opens every source.
    pub(crate) fn open(spec: &JailSpec) -> Result<Self, Refusal> {
        let mut maps = IdMaps::default();
        let mut binds = Vec::new();
        for bind in &spec.root.binds {
            let (tree, metadata) = match opened(bind) {
                Ok(opened) => opened,
                Err(_) if bind.optional && fs::metadata(&bind.source).is_err() => continue,
                Err(error) => return Err(unreadable(bind, &error)),
            };
            if let (true, Some(outside)) = (bind.own, spec.outside_id) {
                // A convenience: not every file system can.
                let _ = maps.apply(&tree, metadata.uid(), metadata.gid(), outside);
            }
            let no_devices =
                if bind.device { libc::MOUNT_ATTR_NOEXEC } else { libc::MOUNT_ATTR_NODEV };
            let mut set = libc::MOUNT_ATTR_NOSUID | no_devices;
            if !bind.writable {
                set |= libc::MOUNT_ATTR_RDONLY;
            }
            restrict(&tree, set).layer(LAYER, &format!("protect {}", bind.source.display()))?;
            binds.push((bind.clone(), tree, metadata.is_dir()));
        }
        let mut devices = Vec::new();
        for name in DEVICES {
            let tree = open(&Path::new("/dev").join(name)).layer(LAYER, &format!("/dev/{name}"))?;
            let set = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
            restrict(&tree, set).layer(LAYER, &format!("protect /dev/{name}"))?;
            devices.push((name, tree));
        }
        Ok(Self { binds, devices, _holders: maps.holders })
    }
}

fn unreadable(bind: &Bind, error: &io::Error) -> Refusal {
    Refusal::new(LAYER, format!("{} cannot be shown to the plugin: {error}", bind.source.display()))
        .advise("name only paths that exist and that the node's user may read")
}

/// The source of a bind, and what it is: one look-up for both.
fn opened(bind: &Bind) -> io::Result<(OwnedFd, fs::Metadata)> {
    let tree = if bind.exact {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let links = ResolveFlags::NO_SYMLINKS;
        let found = openat2(CWD, &bind.source, flags, Mode::empty(), links).map_err(|error| {
            let text = "it leads through a symbolic link: name where it leads";
            if error == Errno::LOOP { io::Error::other(text) } else { error.into() }
        })?;
        open_tree(found, "", TREE | OpenTreeFlags::AT_EMPTY_PATH)?
    } else {
        open(&bind.source)?
    };
    let metadata = fs::File::from(tree.try_clone()?).metadata()?;
    if bind.device && !metadata.file_type().is_char_device() {
        return Err(io::Error::other("it is no character device"));
    }
    Ok((tree, metadata))
}

/// A detached copy of all that is mounted at and below a place.
const TREE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE
    .union(OpenTreeFlags::OPEN_TREE_CLOEXEC)
    .union(OpenTreeFlags::AT_RECURSIVE);

fn open(path: &Path) -> io::Result<OwnedFd> {
    Ok(open_tree(CWD, path, TREE)?)
}

fn restrict(tree: &OwnedFd, set: u64) -> io::Result<()> {
    sys::change_mounts(tree, MountChange { set, user_namespace: None })
}

/// User namespaces that stand for "files of this owner appear as that id's", one per owner.
#[derive(Default)]
struct IdMaps {
    by_owner: HashMap<(u32, u32), OwnedFd>,
    holders: Holders,
}

/// Processes that held an id map until it was opened, and are ending. They are reaped with the
/// trees, when the jail stands: until then nobody need wait for the kernel to take them apart.
#[derive(Default)]
struct Holders(Vec<Pid>);

impl Drop for Holders {
    fn drop(&mut self) {
        for holder in &self.0 {
            // Elsewhere than in the launcher they are nobody's children, and nothing is waited for.
            let _ = waitpid(Some(*holder), WaitOptions::empty());
        }
    }
}

impl IdMaps {
    fn apply(&mut self, tree: &OwnedFd, user: u32, group: u32, outside: u32) -> io::Result<()> {
        let namespace = match self.by_owner.entry((user, group)) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(id_map(user, group, outside, &mut self.holders)?),
        };
        let change = MountChange { set: libc::MOUNT_ATTR_IDMAP, user_namespace: Some(&*namespace) };
        sys::change_mounts(tree, change)
    }
}

/// A user namespace with the given map, held by its descriptor alone.
fn id_map(user: u32, group: u32, outside: u32, holders: &mut Holders) -> io::Result<OwnedFd> {
    let (gate, keeper) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match sys::clone_into(libc::CLONE_NEWUSER, false, None)? {
        Fork::Child => {
            drop(keeper);
            // Until the parent closes its end.
            let _ = rustix::io::read(&gate, &mut [0_u8; 1]);
            sys::exit_now(0)
        }
        Fork::Parent(holder) => {
            holders.0.push(holder);
            let proc = format!("/proc/{}", holder.as_raw_nonzero());
            let made = fs::write(format!("{proc}/uid_map"), format!("{user} {outside} 1"))
                .and_then(|()| fs::write(format!("{proc}/gid_map"), format!("{group} {outside} 1")))
                .and_then(|()| fs::File::open(format!("{proc}/ns/user")));
            drop(keeper);
            made.map(OwnedFd::from)
        }
    }
}

/// Builds the root and moves into it.
pub(crate) fn enter(spec: &RootSpec, trees: Trees) -> Result<(), Refusal> {
    let all = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount_change("/", all).layer(LAYER, "make mounts private")?;
    tmpfs(Path::new(BUILDING_SITE), "size=4m,mode=755", MountFlags::NOEXEC)
        .layer(LAYER, "mount a tmpfs")?;
    let site = Path::new(BUILDING_SITE);
    // Before the binds, some of which may lie below it.
    let tmp = place(site, Path::new("/tmp"), true).layer(LAYER, "make /tmp")?;
    tmpfs(&tmp, &format!("size={},mode=1777", spec.tmp_bytes), MountFlags::empty())
        .layer(LAYER, "mount a private /tmp")?;
    for (bind, tree, is_directory) in trees.binds {
        let target = place(site, &bind.target, is_directory)
            .and_then(|target| attach(tree.as_fd(), &target));
        target.layer(LAYER, &format!("show {}", bind.target.display()))?;
    }
    for (path, target) in &spec.links {
        let path = inside(site, path);
        make_parent(&path).and_then(|()| symlink(target, &path)).layer(LAYER, "make links")?;
    }
    for (path, contents) in &spec.files {
        let path = inside(site, path);
        make_parent(&path).and_then(|()| fs::write(&path, contents)).layer(LAYER, "make files")?;
    }
    devices(site, trees.devices, spec.tmp_bytes).layer(LAYER, "make /dev")?;
    let proc = place(site, Path::new("/proc"), true).layer(LAYER, "make /proc")?;
    mount("proc", &proc, "proc", strict() | MountFlags::NOEXEC, None)
        .layer(LAYER, "mount a fresh /proc")
        .map_err(|refusal| {
            refusal.advise(
                "in a container, /proc must not be masked (security_opt: systempaths=unconfined)",
            )
        })?;
    pivot(site).layer(LAYER, "pivot_root")?;
    for path in &spec.masks {
        mask(path).layer(LAYER, &format!("hide {}", path.display()))?;
    }
    mount_remount("/", strict() | MountFlags::NOEXEC | MountFlags::RDONLY, "")
        .layer(LAYER, "make the root read-only")
}

fn strict() -> MountFlags {
    MountFlags::NOSUID | MountFlags::NODEV
}

fn tmpfs(at: &Path, options: &str, more: MountFlags) -> io::Result<()> {
    let options = std::ffi::CString::new(options)?;
    mount("tmpfs", at, "tmpfs", strict() | more, options.as_c_str())?;
    Ok(())
}

fn attach(tree: BorrowedFd<'_>, target: &Path) -> io::Result<()> {
    Ok(move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// `path`, which is absolute, below `site`. `..` cannot leave it.
fn inside(site: &Path, path: &Path) -> PathBuf {
    let mut below = site.to_path_buf();
    below.extend(path.components().filter(|part| matches!(part, Component::Normal(_))));
    below
}

/// Makes an empty directory or file to mount on.
fn place(site: &Path, path: &Path, is_directory: bool) -> io::Result<PathBuf> {
    let path = inside(site, path);
    if is_directory {
        fs::create_dir_all(&path)?;
        return Ok(path);
    }
    let empty = || fs::OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path);
    let made = empty().or_else(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            make_parent(&path)?;
            empty()
        }
        _ => Err(error),
    });
    match made {
        // Within another bind, which may be read-only, it is there already.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(path),
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

fn devices(site: &Path, trees: Vec<(&'static str, OwnedFd)>, bytes: u64) -> io::Result<()> {
    for (name, tree) in trees {
        let path = Path::new("/dev").join(name);
        attach(tree.as_fd(), &place(site, &path, false)?)?;
    }
    let dev = inside(site, Path::new("/dev"));
    let standard = [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")];
    for (name, target) in standard {
        symlink(Path::new("/proc/self").join(target), dev.join(name))?;
    }
    let shared = place(site, Path::new("/dev/shm"), true)?;
    tmpfs(&shared, &format!("size={bytes},mode=1777"), MountFlags::NOEXEC)
}

fn pivot(site: &Path) -> io::Result<()> {
    rustix::process::chdir(site)?;
    // Old and new root stacked on one place: the old one is on top and is taken away.
    rustix::process::pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Covers `path` with something empty, if the jail shows it.
fn mask(path: &Path) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(found) if found.is_dir() => {
            tmpfs(path, "size=4k,mode=555", MountFlags::NOEXEC | MountFlags::RDONLY)
        }
        Ok(_) => {
            let nothing = Path::new("/.nothing");
            if fs::metadata(nothing).is_err() {
                fs::write(nothing, "")?;
                fs::set_permissions(nothing, fs::Permissions::from_mode(0o444))?;
            }
            rustix::mount::mount_bind(nothing, path)?;
            Ok(())
        }
        // What the first process cannot see, the program, which has the same id, cannot either.
        Err(_) => Ok(()),
    }
}
