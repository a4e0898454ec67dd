//! From a path or a command line to a program that can be started, with everything checked that
//! can be checked before there is a process.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use protocol::manifest::{Defaults, Isolation, Listen, Manifest, Permission, PluginName};

use crate::{
    level::{self, Code},
    status::{Command, LoadError, Source},
};

/// The manifest's file name within a plugin's directory.
pub const MANIFEST_FILE: &str = "plugin.yaml";

/// Symbolic links that are followed from a program to its file.
const LINKS_MAX: usize = 16;

/// Something that can be started.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its manifest; for a command line, one made from it.
    pub manifest: Manifest,
    /// Absolute program and arguments.
    pub argv: Vec<String>,
    /// Absolute.
    pub working_dir: PathBuf,
    /// What the program must be able to read, beside the system's own directories.
    pub read_paths: Vec<PathBuf>,
    /// Directories in which it finds further programs.
    pub search_path: Vec<PathBuf>,
    /// An encoded `FileDescriptorSet` from its package.
    pub descriptors: Option<Bytes>,
    /// It has a state directory.
    pub state: bool,
    /// The node's own code, run instead of the program.
    pub code: Option<Code>,
    /// For people: the path or command line.
    pub source: String,
}

/// Reads and checks `source`, which must have at least the isolation level `least`. Touches the
/// disk: call it where blocking is allowed.
pub fn resolve(
    source: &Source,
    name: Option<&str>,
    defaults: &Defaults,
    least: Isolation,
) -> Result<Program, LoadError> {
    let mut program = match source {
        Source::Path(path) => from_path(path, defaults)?,
        Source::Exec(command) => from_command(command)?,
    };
    if let Some(name) = name {
        program.manifest.name = plugin_name(name)?;
    }
    runs_here(&program.manifest, least)?;
    Ok(program)
}

fn plugin_name(text: &str) -> Result<PluginName, LoadError> {
    text.parse().map_err(|error| LoadError::Invalid(format!("{error}")))
}

fn unreadable(path: &Path, cause: impl std::fmt::Display) -> LoadError {
    LoadError::Unreadable { path: path.into(), cause: format!("{cause}") }
}

fn from_path(path: &Path, defaults: &Defaults) -> Result<Program, LoadError> {
    let path = std::path::absolute(path).map_err(|error| unreadable(path, error))?;
    let metadata = fs::metadata(&path).map_err(|error| unreadable(&path, error))?;
    if metadata.is_dir() {
        let manifest = path.join(MANIFEST_FILE);
        if !manifest.is_file() {
            let cause = format!("it is a directory without {MANIFEST_FILE}");
            return Err(unreadable(&path, cause));
        }
        return from_manifest(&manifest, defaults);
    }
    let yaml = path.extension().is_some_and(|end| end == "yaml" || end == "yml");
    if yaml {
        return from_manifest(&path, defaults);
    }
    if metadata.permissions().mode() & 0o111 == 0 {
        let cause = format!(
            "expected a directory with {MANIFEST_FILE}, a manifest ending in .yaml, or an \
             executable; this file is not executable"
        );
        return Err(unreadable(&path, cause));
    }
    let command = Command { argv: vec![text(&path)?], ..Command::default() };
    let mut program = from_command(&command)?;
    program.source = text(&path)?;
    Ok(program)
}

fn from_manifest(path: &Path, defaults: &Defaults) -> Result<Program, LoadError> {
    let bytes = fs::read(path).map_err(|error| unreadable(path, error))?;
    let refused = |cause: String| LoadError::Manifest { path: path.into(), cause };
    let manifest = Manifest::parse(&bytes, defaults).map_err(|error| refused(error.to_string()))?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let entrypoint = match &manifest.entrypoint {
        Some(argv) => argv.clone(),
        None => vec![default_entrypoint(directory, &manifest.name).map_err(refused)?],
    };
    let mut found = Found::default();
    let program = match manifest.isolation {
        Isolation::Wasm => module(directory, &entrypoint[0])?,
        _ => found.program(&entrypoint[0], Some(directory))?,
    };
    let mut argv = vec![text(&program)?];
    argv.extend(entrypoint[1..].iter().cloned());
    argv.extend(manifest.args.iter().cloned());
    let descriptors = match &manifest.interface.descriptors {
        None => None,
        Some(file) => {
            let file = directory.join(file);
            let bytes = fs::read(&file).map_err(|error| unreadable(&file, error))?;
            Some(bytes.into())
        }
    };
    found.read_paths.push(directory.into());
    Ok(Program {
        argv,
        working_dir: directory.into(),
        read_paths: found.read_paths,
        search_path: found.search_path,
        descriptors,
        state: false,
        code: None,
        source: text(directory)?,
        manifest,
    })
}

/// The file of a guest. It is read, not executed, and nothing is searched for.
fn module(directory: &Path, file: &str) -> Result<PathBuf, LoadError> {
    let path = normal(&directory.join(file));
    let metadata = fs::metadata(&path).map_err(|error| unreadable(&path, error))?;
    if metadata.is_file() { Ok(path) } else { Err(unreadable(&path, "it is not a file")) }
}

/// The file that has the plugin's name, beside the manifest or in `bin`.
fn default_entrypoint(directory: &Path, name: &PluginName) -> Result<String, String> {
    let candidates = [name.to_string(), format!("bin/{name}"), format!("{name}.wasm")];
    let found = candidates.into_iter().find(|file| directory.join(file).is_file());
    found.ok_or_else(|| {
        format!(
            "entrypoint: is missing, and there is no file `{name}` or `bin/{name}` beside the \
             manifest"
        )
    })
}

fn from_command(command: &Command) -> Result<Program, LoadError> {
    let Some(first) = command.argv.first().filter(|first| !first.is_empty()) else {
        return Err(LoadError::Invalid("the command line is empty".into()));
    };
    let absolute = command.working_dir.iter().chain(&command.read_paths);
    if let Some(relative) = absolute.clone().find(|path| !path.is_absolute()) {
        let message = format!("{} is not an absolute path", relative.display());
        return Err(LoadError::Invalid(message));
    }
    if let Some(gone) = absolute.clone().find(|path| !path.exists()) {
        return Err(unreadable(gone, "it does not exist"));
    }
    let mut found = Found::default();
    let program = found.program(first, command.working_dir.as_deref())?;
    let mut argv = vec![text(&program)?];
    argv.extend(command.argv[1..].iter().cloned());
    found.named(&command.argv[1..], command.working_dir.as_deref());
    found.read_paths.extend(command.read_paths.iter().cloned());
    let working_dir = match &command.working_dir {
        Some(directory) => {
            found.read_paths.push(directory.clone());
            directory.clone()
        }
        None => PathBuf::from("/tmp"),
    };
    let mut manifest = Manifest::new(name_of(&command.argv)?, semver::Version::new(0, 0, 0));
    manifest.listen = match command.listen.as_str() {
        "" => Listen::Unix,
        other => other.parse().map_err(|error| LoadError::Invalid(format!("--listen: {error}")))?,
    };
    for permission in &command.permissions {
        let permission = permission.parse();
        let permission: Permission =
            permission.map_err(|error| LoadError::Invalid(format!("--permission: {error}")))?;
        manifest.permissions.push(permission);
    }
    for service in &command.services {
        let name = service.parse().map_err(|error| LoadError::Invalid(format!("{error}")))?;
        manifest.interface.services.push(name);
    }
    Ok(Program {
        manifest,
        argv,
        working_dir,
        read_paths: found.read_paths,
        search_path: found.search_path,
        descriptors: None,
        state: false,
        code: None,
        source: command.argv.join(" "),
    })
}

/// The first argument that looks like the program proper: `server` for `python3 server.py`.
fn name_of(argv: &[String]) -> Result<PluginName, LoadError> {
    let script = argv.iter().skip(1).find(|argument| {
        let path = Path::new(argument);
        path.extension().is_some_and(|end| {
            ["py", "js", "mjs", "ts", "rb", "jar", "sh", "php"].iter().any(|known| end == *known)
        })
    });
    let named = script.unwrap_or(&argv[0]);
    let stem = Path::new(named).file_stem().unwrap_or_default().to_string_lossy();
    let plain: String = stem
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' })
        .take(PluginName::BYTES_MAX)
        .collect();
    let trimmed = plain.trim_matches(['-', '_']);
    trimmed.parse().map_err(|_| {
        LoadError::Invalid(format!("no plugin name can be made of `{named}`: give one with --name"))
    })
}

/// What this node can do with the manifest.
fn runs_here(manifest: &Manifest, least: Isolation) -> Result<(), LoadError> {
    let refuse = |message: String| Err(LoadError::Invalid(message));
    level::allow(manifest.isolation, least).map_err(LoadError::Invalid)?;
    let here = platform();
    if !manifest.platforms.is_empty() && !manifest.platforms.contains(&here) {
        let theirs = manifest.platforms.join(", ");
        return refuse(format!("platforms: this node is {here}, the plugin runs on {theirs}"));
    }
    Ok(())
}

/// This machine, as manifests write it.
fn platform() -> String {
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}/{machine}", std::env::consts::OS)
}

fn text(path: &Path) -> Result<String, LoadError> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| unreadable(path, "its path is not text in UTF-8"))
}

/// What was found on the way to a program: everything that must be readable to start it.
#[derive(Default)]
struct Found {
    read_paths: Vec<PathBuf>,
    search_path: Vec<PathBuf>,
}

impl Found {
    /// The absolute path of `program`: relative to `directory` where it contains a slash or is a
    /// file there, else searched in `PATH`. Its interpreter is found, too.
    fn program(&mut self, program: &str, directory: Option<&Path>) -> Result<PathBuf, LoadError> {
        let local = directory.map(|directory| directory.join(program));
        let found = match local {
            Some(local) if program.contains('/') || local.is_file() => Some(local),
            None if program.contains('/') => Some(PathBuf::from(program)),
            _ => search(program),
        };
        let Some(found) = found else {
            return Err(unreadable(Path::new(program), "there is no such program in PATH"));
        };
        let found = normal(&std::path::absolute(&found).map_err(|e| unreadable(&found, e))?);
        let metadata = fs::metadata(&found).map_err(|error| unreadable(&found, error))?;
        if !metadata.is_file() {
            return Err(unreadable(&found, "it is not a file"));
        }
        if metadata.permissions().mode() & 0o111 == 0 {
            return Err(unreadable(&found, "it is not executable: chmod +x makes it so"));
        }
        self.hops(&found);
        Ok(found)
    }

    /// A program, the files its symbolic links lead to, and its interpreter.
    fn hops(&mut self, program: &Path) {
        let mut hop = program.to_path_buf();
        for _ in 0..LINKS_MAX {
            self.around(&hop);
            let Ok(target) = fs::read_link(&hop) else { break };
            hop = normal(&hop.parent().unwrap_or(Path::new("/")).join(target));
        }
        if let Ok(file) = fs::canonicalize(program) {
            self.around(&file);
            if let Some(interpreter) = interpreter(&file)
                && interpreter != program
                && self.read_paths.len() < LINKS_MAX
            {
                self.hops(&interpreter);
            }
        }
    }

    /// The program and its surroundings: for `…/venv/bin/python`, all of `…/venv`. Never a whole
    /// home directory.
    fn around(&mut self, program: &Path) {
        let Some(directory) = program.parent() else { return };
        self.search_path.push(directory.into());
        let holds_programs = directory
            .file_name()
            .is_some_and(|name| ["bin", "sbin", "shims", "libexec"].iter().any(|d| name == *d));
        let prefix = directory.parent().filter(|_| holds_programs);
        let wanted = [prefix, Some(directory)].into_iter().flatten().find(|path| !is_broad(path));
        self.read_paths.push(wanted.unwrap_or(program).into());
    }

    /// Files and directories that the command line names.
    fn named(&mut self, arguments: &[String], directory: Option<&Path>) {
        for argument in arguments {
            let path = match directory {
                Some(directory) => directory.join(argument),
                None if argument.starts_with('/') => PathBuf::from(argument),
                None => continue,
            };
            let path = normal(&path);
            if path.is_dir() && !is_broad(&path) {
                self.read_paths.push(path);
            } else if path.is_file() {
                let parent = path.parent().filter(|parent| !is_broad(parent));
                self.read_paths.push(parent.unwrap_or(&path).into());
            }
        }
    }
}

/// Directories that hold much more than one program: showing them needs an explicit read path.
pub(crate) fn is_broad(path: &Path) -> bool {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let depth = path.components().count();
    // The root, its children (`/root`, `/srv`, …), and every home directory.
    depth <= 2 || home.is_some_and(|home| home == path) || (depth == 3 && path.starts_with("/home"))
}

/// Without `.` and `..`, by their text alone.
fn normal(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            std::path::Component::CurDir => {}
            std::path::Component::ParentDir => {
                plain.pop();
            }
            other => plain.push(other),
        }
    }
    plain
}

fn search(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).filter(|directory| directory.is_absolute()).find_map(|directory| {
        let candidate = directory.join(program);
        let metadata = fs::metadata(&candidate).ok()?;
        (metadata.is_file() && metadata.permissions().mode() & 0o111 != 0).then_some(candidate)
    })
}

/// What a script's first line names, with `env` seen through.
fn interpreter(file: &Path) -> Option<PathBuf> {
    use std::io::Read;
    let mut begin = Vec::new();
    fs::File::open(file).ok()?.take(256).read_to_end(&mut begin).ok()?;
    let line = begin.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = std::str::from_utf8(line).ok()?;
    let mut words = line.split_whitespace();
    let program = Path::new(words.next()?);
    if program.file_name().is_some_and(|name| name == "env") {
        return search(words.find(|word| !word.starts_with('-'))?);
    }
    Some(program.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(source: &Source, name: Option<&str>) -> Result<Program, LoadError> {
        super::resolve(source, name, &Defaults::default(), Isolation::Wasm)
    }

    fn command(argv: &[&str]) -> Command {
        Command { argv: argv.iter().map(ToString::to_string).collect(), ..Command::default() }
    }

    fn executable(path: &Path, contents: &str) {
        fs::write(path, contents).expect("written");
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("mode");
    }

    #[test]
    fn a_name_is_made_from_the_program_proper() {
        let name = |argv: &[&str]| {
            let argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
            name_of(&argv).expect("a name").to_string()
        };
        assert_eq!(name(&["python3", "/srv/My Server.py", "--x"]), "my-server");
        assert_eq!(name(&["./target/counter"]), "counter");
        assert_eq!(name(&["java", "-jar", "app.jar"]), "app");
    }

    #[test]
    fn a_directory_with_a_manifest_gives_its_default_entrypoint() {
        let directory = tempfile::tempdir().expect("made");
        let manifest = directory.path().join(MANIFEST_FILE);
        fs::write(&manifest, "name: echo\nversion: 1.0.0\n").expect("written");
        let source = Source::Path(directory.path().into());
        let missing = resolve(&source, None).expect_err("no program");
        assert!(missing.to_string().contains("`echo` or `bin/echo`"), "{missing}");

        executable(&directory.path().join("echo"), "#!/bin/sh\n");
        let program = resolve(&source, Some("other")).expect("whole");
        assert_eq!(program.manifest.name.as_str(), "other");
        assert_eq!(program.argv, [directory.path().join("echo").to_str().expect("text")]);
        assert_eq!(program.working_dir, directory.path());
    }

    #[test]
    fn wrong_sources_say_what_is_expected() {
        let directory = tempfile::tempdir().expect("made");
        let path = |name: &str| Source::Path(directory.path().join(name));
        let told = |source: &Source| resolve(source, None).expect_err("wrong").to_string();
        assert!(told(&path("nothing")).contains("No such file"));
        fs::write(directory.path().join("data.bin"), "x").expect("written");
        assert!(told(&path("data.bin")).contains("not executable"));
        assert!(told(&Source::Path(directory.path().into())).contains("without plugin.yaml"));
        fs::write(directory.path().join("m.yaml"), "name: A\nwhat: 1\n").expect("written");
        let text = told(&path("m.yaml"));
        assert!(text.contains("line 1: name") && text.contains("line 2: what"), "{text}");
        assert!(told(&Source::Exec(command(&["no-such-program"]))).contains("in PATH"));
        assert!(told(&Source::Exec(Command::default())).contains("empty"));
        let wrong = Command { listen: "udp".into(), ..command(&["/bin/sh"]) };
        assert!(told(&Source::Exec(wrong)).contains("tcp:PORT"));
    }

    #[test]
    fn an_isolation_level_or_platform_that_is_not_here_is_refused() {
        let directory = tempfile::tempdir().expect("made");
        executable(&directory.path().join("echo"), "#!/bin/sh\n");
        for (line, told) in [("isolation: vm", "level `vm`"), ("platforms: [plan9/vax]", "plan9")] {
            let text = format!("name: echo\nversion: 1.0.0\n{line}\n");
            fs::write(directory.path().join(MANIFEST_FILE), text).expect("written");
            let error = resolve(&Source::Path(directory.path().into()), None);
            assert!(error.expect_err(line).to_string().contains(told));
        }
    }

    #[test]
    fn an_interpreter_behind_links_and_env_brings_its_prefix() {
        let directory = tempfile::tempdir().expect("made");
        let root = directory.path().canonicalize().expect("exists");
        for at in ["real/bin", "venv/bin", "app"] {
            fs::create_dir_all(root.join(at)).expect("made");
        }
        executable(&root.join("real/bin/python9"), "\x7fELF");
        std::os::unix::fs::symlink("../../real/bin/python9", root.join("venv/bin/python"))
            .expect("linked");
        let shebang = format!("#!{}\n", root.join("venv/bin/python").display());
        executable(&root.join("app/serve"), &shebang);
        let serve = root.join("app/serve");
        let source = Source::Exec(command(&[serve.to_str().expect("text")]));
        let program = resolve(&source, None).expect("whole");
        for needed in ["app", "venv", "real"] {
            assert!(program.read_paths.contains(&root.join(needed)), "{needed}");
        }
    }

    #[test]
    fn home_directories_are_never_shown_whole() {
        for broad in ["/", "/root", "/srv", "/home/somebody"] {
            assert!(is_broad(Path::new(broad)), "{broad}");
        }
        assert!(!is_broad(Path::new("/home/somebody/app")));
        assert!(!is_broad(Path::new("/opt/app")));
    }
}
