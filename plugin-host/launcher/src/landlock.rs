//! Landlock: the program touches what its spec lists, and nothing else, whatever a mount shows.
//!
//! Rules follow from the same [`RootSpec`](crate::spec::RootSpec) as the private root: reading and
//! executing what is shown, writing only to writable binds, to the private `/tmp` and `/dev/shm`
//! and to the five devices. Inside namespaces this repeats the root with another mechanism.
//! Without them it is the barrier: then the sources of the binds are meant, there is no `/tmp`,
//! and what lies in a granted directory and is masked is left out by granting its neighbours.
//!
//! The best version that the kernel has is used and named. From version 6 on the program can
//! neither signal processes outside nor reach their abstract sockets; versions before 9 do not
//! know sockets with a path.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, LandlockStatus, NetPort,
    PathBeneath, RestrictionStatus, Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr,
    RulesetError, RulesetStatus, Scope,
};
use rustix::fs::{Mode, OFlags};

use crate::{
    jail::{Layer, Refusal},
    spec::{Bind, Internet, JailSpec, RootSpec},
};

const LAYER: &str = "landlock";

/// The newest version whose rights are asked for. An older kernel gives what it has.
const NEWEST: ABI = ABI::V9;

/// Paths that one granted directory may become where parts of it are masked.
const NEIGHBOURS_MAX: usize = 4_096;

const ADVICE: &str = "use a kernel from 5.13 on with Landlock in its list of security modules \
     (boot parameter lsm=landlock,…), or set the operator policy `plugins.landlock: off`";

/// The devices of a jail; the host's own where there are no namespaces.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// What may be done below a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Grant {
    /// Names of what is there.
    List,
    /// Contents.
    Read,
    /// Contents and programs.
    Execute,
    /// Contents, and changing them; no devices are made.
    Write,
    /// Contents and changing them, of files that are there.
    Update,
    /// A granted device: also its own commands.
    Device,
}

impl Grant {
    fn access(self) -> BitFlags<AccessFs> {
        let list = BitFlags::from(AccessFs::ReadDir);
        let read = list | AccessFs::ReadFile | AccessFs::ResolveUnix;
        let devices = AccessFs::MakeChar | AccessFs::MakeBlock | AccessFs::IoctlDev;
        match self {
            Self::List => list,
            Self::Read => read,
            Self::Execute => read | AccessFs::Execute,
            Self::Write => AccessFs::from_all(NEWEST) & !devices,
            Self::Update => AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate,
            Self::Device => Self::Update.access() | AccessFs::IoctlDev,
        }
    }
}

/// Restricts this process and all that follow from it. Needs no-new-privileges. Returns the name
/// of the layer with its version.
pub(crate) fn restrict(spec: &JailSpec) -> Result<String, Refusal> {
    let grants = grants(spec).layer(LAYER, "what is granted")?;
    let status =
        apply(spec, &grants).layer(LAYER, "restrict").map_err(|refusal| refusal.advise(ADVICE))?;
    let version = match status.landlock {
        LandlockStatus::Available { effective_abi, .. } => effective_abi.min(NEWEST),
        LandlockStatus::NotEnabled => {
            return Err(missing("the kernel has it and it is not enabled"));
        }
        LandlockStatus::NotImplemented => return Err(missing("the kernel does not have it")),
    };
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(missing("the kernel enforced nothing"));
    }
    if matches!(spec.internet, Internet::Listen(_)) && version < ABI::V4 {
        return Err(missing("TCP ports need version 4, Linux 6.7"));
    }
    Ok(format!("{LAYER}-v{version}"))
}

fn missing(reason: &str) -> Refusal {
    Refusal::new(LAYER, reason).advise(ADVICE)
}

fn apply(spec: &JailSpec, grants: &[(PathBuf, Grant)]) -> Result<RestrictionStatus, RulesetError> {
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?;
    if let Internet::Listen(_) = spec.internet {
        ruleset = ruleset.handle_access(AccessNet::BindTcp | AccessNet::ConnectTcp)?;
    }
    let mut created = ruleset.create()?;
    for (path, grant) in grants {
        created = grant_path(created, path, *grant)?;
    }
    if let Internet::Listen(port) = spec.internet {
        created = created.add_rule(NetPort::new(port, AccessNet::BindTcp))?;
    }
    created.restrict_self()
}

/// What cannot be opened cannot be reached either, and gets no rule.
fn grant_path(
    created: RulesetCreated,
    path: &Path,
    grant: Grant,
) -> Result<RulesetCreated, RulesetError> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let Ok(opened) = rustix::fs::open(path, flags, Mode::empty()) else { return Ok(created) };
    let directory = rustix::fs::fstat(&opened)
        .is_ok_and(|found| rustix::fs::FileType::from_raw_mode(found.st_mode).is_dir());
    let mut access = grant.access();
    if !directory {
        // The kernel refuses rights that a single file cannot have.
        access &= AccessFs::from_file(NEWEST);
    }
    created.add_rule(PathBeneath::new(opened, access))
}

/// Every path with what may be done below it.
fn grants(spec: &JailSpec) -> io::Result<Vec<(PathBuf, Grant)>> {
    let mut grants = Vec::new();
    let masks = if spec.namespaces { Vec::new() } else { real(&spec.root.masks) };
    let filled = if spec.namespaces { filled(&spec.root) } else { BTreeSet::new() };
    let is_alone = |path: &Path| path.parent().is_none_or(|parent| !filled.contains(parent));
    grants.extend(filled.iter().map(|path| (path.to_path_buf(), Grant::Execute)));
    for bind in &spec.root.binds {
        let grant = match (bind.device, bind.writable) {
            (true, _) => Grant::Device,
            (false, true) => Grant::Write,
            (false, false) => Grant::Execute,
        };
        if spec.namespaces {
            if grant != Grant::Execute || is_alone(&bind.target) {
                grants.push((bind.target.clone(), grant));
            }
        } else {
            let paths = sources(bind, &masks)?;
            grants.extend(paths.into_iter().map(|path| (path, grant)));
        }
    }
    let files = spec.root.files.iter().filter(|(path, _)| is_alone(path));
    grants.extend(files.map(|(path, _)| (path.clone(), Grant::Read)));
    for device in DEVICES {
        grants.push((device.into(), Grant::Update));
    }
    // Its own entry, so that run-times can name their threads; in it is nothing of others.
    grants.push(("/proc/self".into(), Grant::Update));
    if spec.namespaces {
        // The root is the jail's own and shows only what is listed above.
        grants.push(("/".into(), Grant::List));
        grants.push(("/proc".into(), Grant::Read));
        grants.push(("/tmp".into(), Grant::Write));
        grants.push(("/dev/shm".into(), Grant::Write));
    } else {
        grants.extend(MACHINE.iter().map(|path| (PathBuf::from(path), Grant::Read)));
    }
    Ok(grants)
}

/// Directories that the private root makes and fills with more than one thing to read, such as
/// `/etc`: one rule for each says the same as one for each entry, and each rule costs every start.
fn filled(root: &RootSpec) -> BTreeSet<&Path> {
    let read = root.binds.iter().filter(|bind| !bind.writable && !bind.device);
    let read = read.map(|bind| &bind.target).chain(root.files.iter().map(|(path, _)| path));
    let mut counts = BTreeMap::new();
    for parent in read.filter_map(|path| path.parent()) {
        *counts.entry(parent).or_insert(0) += 1;
    }
    // What is within a bind is not the root's own, and the root has its own rule.
    let own = |path: &Path| !root.binds.iter().any(|bind| path.starts_with(&bind.target));
    let filled = counts.into_iter().filter(|(_, count)| *count > 1).map(|(path, _)| path);
    filled.filter(|path| *path != Path::new("/") && own(path)).collect()
}

/// Of the whole machine, what run-times read at their start. Landlock itself keeps what lies
/// behind other processes (their environment, memory, root and descriptors) from a program in it.
const MACHINE: [&str; 3] = ["/proc", "/sys/devices/system/cpu", "/sys/fs/cgroup"];

/// The masks, and where their names lead.
fn real(masks: &[PathBuf]) -> Vec<PathBuf> {
    let led = masks.iter().filter_map(|mask| fs::canonicalize(mask).ok());
    masks.iter().cloned().chain(led).collect()
}

/// The paths of a bind where there is no private root.
fn sources(bind: &Bind, masks: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
    // What would have another name inside is the host's own gift, such as its sockets, and lies
    // where everything else is masked.
    if bind.source != bind.target {
        return Ok(vec![bind.source.clone()]);
    }
    match fs::canonicalize(&bind.source) {
        Ok(source) => without(&source, masks, &mut list),
        // It is not there.
        Err(_) => Ok(Vec::new()),
    }
}

/// What stands for `path` without what is masked: itself, or its entries where one of them is, or
/// contains, a mask. `list` gives the entries of a directory.
fn without(
    path: &Path,
    masks: &[PathBuf],
    list: &mut impl FnMut(&Path) -> io::Result<Vec<PathBuf>>,
) -> io::Result<Vec<PathBuf>> {
    let mut kept = Vec::new();
    let mut open = vec![path.to_path_buf()];
    while let Some(path) = open.pop() {
        if masks.iter().any(|mask| path.starts_with(mask)) {
            continue;
        }
        if masks.iter().any(|mask| mask.starts_with(&path)) {
            open.extend(list(&path)?);
        } else {
            kept.push(path);
        }
        if kept.len() + open.len() > NEIGHBOURS_MAX {
            return Err(io::Error::other(format!(
                "{} holds something that no plugin may see, and more than {NEIGHBOURS_MAX} \
                 neighbours of it: name directories further down",
                path_name(&open, &kept)
            )));
        }
    }
    kept.sort();
    Ok(kept)
}

fn path_name(open: &[PathBuf], kept: &[PathBuf]) -> String {
    let parent = open.first().or(kept.first()).and_then(|path| path.parent());
    parent.unwrap_or(Path::new("/")).display().to_string()
}

fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        // A link may lead to what is masked; what it leads to is granted under its own name.
        Ok(entries) => Ok(entries
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_symlink()))
            .map(|entry| entry.path())
            .take(NEIGHBOURS_MAX + 1)
            .collect()),
        // A mask that is not there, or a file.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Entries of a made-up file system.
    fn listing(directory: &Path) -> Vec<PathBuf> {
        let names: &[&str] = match directory.to_str() {
            Some("/home/u") => &[".ssh", ".config", "work"],
            Some("/home/u/.config") => &["gh", "app"],
            _ => &[],
        };
        names.iter().map(|name| directory.join(name)).collect()
    }

    fn kept(path: &str, masks: &[&str]) -> Vec<PathBuf> {
        let masks: Vec<PathBuf> = masks.iter().map(PathBuf::from).collect();
        without(Path::new(path), &masks, &mut |path| Ok(listing(path))).expect("listed")
    }

    #[test]
    fn a_directory_without_masks_stands_for_itself() {
        assert_eq!(kept("/home/u", &["/root/.ssh"]), [Path::new("/home/u")]);
    }

    #[test]
    fn the_neighbours_of_a_mask_are_granted_and_it_is_not() {
        let kept = kept("/home/u", &["/home/u/.ssh", "/home/u/.config/gh"]);
        assert_eq!(kept, [Path::new("/home/u/.config/app"), Path::new("/home/u/work")]);
    }

    #[test]
    fn nothing_below_a_mask_is_granted() {
        assert!(kept("/home/u/.ssh/id", &["/home/u/.ssh"]).is_empty());
        assert!(kept("/home/u/.ssh", &["/home/u/.ssh"]).is_empty());
    }

    #[test]
    fn too_many_neighbours_are_an_error_and_not_a_shorter_list() {
        let mut many =
            |_: &Path| Ok((0..=NEIGHBOURS_MAX).map(|n| format!("/d/{n}").into()).collect());
        assert!(without(Path::new("/d"), &["/d/x".into()], &mut many).is_err());
    }

    #[test]
    fn links_are_not_followed_to_what_is_masked() {
        let directory = tempfile::tempdir().expect("made");
        let root = fs::canonicalize(directory.path()).expect("real");
        fs::create_dir(root.join("secret")).expect("made");
        fs::create_dir(root.join("open")).expect("made");
        std::os::unix::fs::symlink(root.join("secret"), root.join("link")).expect("linked");
        let bind = Bind { source: root.clone(), target: root.clone(), ..Bind::default() };
        let kept = sources(&bind, &[root.join("secret")]).expect("listed");
        assert_eq!(kept, [root.join("open")]);
    }

    #[test]
    fn a_directory_of_the_private_root_is_one_rule_and_what_lies_in_a_bind_is_its_own() {
        let bind = |path: &str, writable| Bind {
            source: path.into(),
            target: path.into(),
            writable,
            ..Bind::default()
        };
        let binds = [
            bind("/usr", false),
            bind("/etc/ssl", false),
            bind("/etc/localtime", false),
            bind("/etc/app", true),
            bind("/opt", false),
            bind("/opt/a/one", false),
            bind("/opt/a/two", false),
            bind("/home/u/alone", false),
        ];
        let files = vec![("/etc/passwd".into(), String::new())];
        let root = RootSpec { binds: binds.into(), files, ..RootSpec::default() };
        let spec = JailSpec { namespaces: true, root, ..JailSpec::default() };
        let of = |grants: Vec<(PathBuf, Grant)>, wanted| -> Vec<PathBuf> {
            let found = grants.into_iter().filter(|(_, grant)| *grant == wanted);
            found.map(|(path, _)| path).collect()
        };
        let grants = || grants(&spec).expect("pure here");
        let alone = ["/etc", "/usr", "/opt", "/opt/a/one", "/opt/a/two", "/home/u/alone"];
        assert_eq!(of(grants(), Grant::Execute), alone.map(PathBuf::from));
        assert!(of(grants(), Grant::Write).contains(&"/etc/app".into()));
        assert!(!of(grants(), Grant::Read).contains(&"/etc/passwd".into()));
    }

    #[test]
    fn only_writable_binds_and_the_jails_own_places_may_be_written() {
        let bind = |path: &str, writable| Bind {
            source: path.into(),
            target: path.into(),
            writable,
            ..Bind::default()
        };
        let spec = JailSpec {
            namespaces: true,
            root: RootSpec {
                binds: vec![bind("/usr", false), bind("/run/plugin/own", true)],
                ..RootSpec::default()
            },
            ..JailSpec::default()
        };
        let written: Vec<PathBuf> = grants(&spec)
            .expect("pure here")
            .into_iter()
            .filter(|(_, grant)| grant.access().contains(AccessFs::MakeReg))
            .map(|(path, _)| path)
            .collect();
        assert_eq!(written, ["/run/plugin/own", "/tmp", "/dev/shm"].map(PathBuf::from));
    }
}
