//! `plugin load`, `list`, `info`, `logs`, `unload`, `restart`, `reload`, `scale`,
//! `limit`.

use std::{
    ffi::OsStr,
    path::{Path, PathBuf},
    time::Duration,
};

use protocol::proto::admin::{
    Exec, Plugin as Loaded, PluginInfoRequest, PluginLimitRequest, PluginListRequest,
    PluginLoadRequest, PluginLogsRequest, PluginReloadRequest, PluginRestartRequest,
    PluginScaleRequest, PluginUnloadRequest, plugin_load_request::From as Source,
};
use rustix::fs::Access;
use serde_json::json;
use tokio::time::{Instant, MissedTickBehavior};

use super::World;
use crate::{
    admin::{Node, answer},
    args::{Limit, Load, Logs, Named, Plugin, Scale},
    failed::{Exit, Failed},
    show,
    terminal::{Terminal, clean},
    units::span,
};

/// How often the line that says what is waited for is renewed.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Performs one of the plugin commands.
pub async fn run(
    command: &Plugin,
    world: &World,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    // What is wrong with the command line is said even when no node runs.
    let request = match command {
        Plugin::Load(args) => Some(load_request(args, world)?),
        _ => None,
    };
    let node = world.node().await?;
    match (command, request) {
        (Plugin::Load(_), Some(request)) => load(request, &node, terminal, json).await,
        (Plugin::Info(args), _) => info(args, &node, terminal, json).await,
        (Plugin::Logs(args), _) => logs(args, &node, terminal, json).await,
        (Plugin::Unload(args), _) => unload(args, &node, terminal, json).await,
        (Plugin::Restart(args), _) => restart(args, &node, terminal, json).await,
        (Plugin::Reload(args), _) => reload(args, &node, terminal, json).await,
        (Plugin::Scale(args), _) => scale(args, &node, terminal, json).await,
        (Plugin::Limit(args), _) => limit(args, &node, terminal, json).await,
        // A check is handed over before.
        (Plugin::List | Plugin::Load(_) | Plugin::Check(_), _) => list(&node, terminal, json).await,
    }
}

async fn load(
    request: PluginLoadRequest,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let wait = request.wait;
    let plugin = if wait {
        load_and_wait(request, node, terminal).await?
    } else {
        answer(node.admin().plugin_load(request)).await?.plugin
    };
    let plugin = plugin.ok_or_else(|| Failed::new("the node did not say what it loaded"))?;
    if json {
        terminal.json(&show::plugin::document(&plugin))?;
    } else {
        let text = if wait {
            format!("{} is {}: {}", plugin.name, plugin.state, plugin.services.join(", "))
        } else {
            let name = &plugin.name;
            format!("{name} was started; `blackhole plugin info {name}` shows whether it is ready")
        };
        terminal.print(&clean(&text))?;
    }
    let failed = wait && plugin.state == "failed";
    Ok(if failed { Exit::Failed } else { Exit::Ok })
}

/// Loads, and says what is being waited for while the node waits. There is no limit of our own:
/// the node gives up when the plugin is not ready in time.
async fn load_and_wait(
    request: PluginLoadRequest,
    node: &Node,
    terminal: &mut Terminal,
) -> Result<Option<Loaded>, Failed> {
    let before = names(&node.admin().plugin_list(PluginListRequest {}).await);
    let began = Instant::now();
    let mut admin = node.admin();
    let asked = admin.plugin_load(request);
    tokio::pin!(asked);
    let mut renew = tokio::time::interval(PROGRESS_EVERY);
    renew.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            biased;
            loaded = &mut asked => {
                let loaded = loaded.map_err(|status| Failed::admin(&status))?;
                return Ok(loaded.into_inner().plugin);
            }
            _ = renew.tick(), if terminal.watched => {
                let plugins = node.admin().plugin_list(PluginListRequest {}).await;
                let new = plugins.ok().and_then(|plugins| {
                    let mut plugins = plugins.into_inner().plugins.into_iter();
                    plugins.rfind(|plugin| !before.contains(&plugin.name))
                });
                let waited = span(began.elapsed().as_secs() * 1000);
                terminal.progress(&waiting_for(new.as_ref(), &waited));
            }
        }
    }
}

fn names(
    plugins: &Result<tonic::Response<protocol::proto::admin::PluginListResponse>, tonic::Status>,
) -> Vec<String> {
    let plugins = plugins.as_ref().map(|answer| answer.get_ref().plugins.as_slice());
    plugins.unwrap_or_default().iter().map(|plugin| plugin.name.clone()).collect()
}

fn waiting_for(plugin: Option<&Loaded>, waited: &str) -> String {
    match plugin {
        None => format!("waiting for the plugin to start ({waited})"),
        Some(plugin) => {
            let reason = if plugin.reason.is_empty() { "" } else { ": " };
            let Loaded { name, state, .. } = plugin;
            format!(
                "waiting for {name} to become ready ({waited}, {state}{reason}{})",
                plugin.reason
            )
        }
    }
}

/// What the node is asked to load; paths are absolute, for the node works in another directory.
pub(super) fn load_request(args: &Load, world: &World) -> Result<PluginLoadRequest, Failed> {
    let from = match (&args.path, &args.exec, &args.listen) {
        (Some(path), _, _) => Source::Path(text(&existing(path, world)?)?),
        (None, Some(line), Some(listen)) => Source::Exec(exec(line, listen, args, world)?),
        _ => return Err(Failed::usage("name a PATH, or --exec with --listen")),
    };
    let name = args.name.clone().unwrap_or_default();
    let instances = args.instances.unwrap_or(0);
    Ok(PluginLoadRequest { from: Some(from), wait: args.wait, name, instances })
}

fn exec(line: &str, listen: &str, args: &Load, world: &World) -> Result<Exec, Failed> {
    let mut words = shlex::split(line)
        .ok_or_else(|| Failed::usage(format!("a quote is left open in --exec: {line}")))?;
    let Some(program) = words.first_mut() else {
        return Err(Failed::usage("--exec names no program"));
    };
    *program = text(&find_program(program, world)?)?;
    let read_paths = args
        .read_paths
        .iter()
        .map(|path| existing(path, world).and_then(|path| text(&path)))
        .collect::<Result<_, _>>()?;
    Ok(Exec {
        argv: words,
        listen: listen.into(),
        services: args.services.iter().map(ToString::to_string).collect(),
        permissions: args.permissions.iter().map(ToString::to_string).collect(),
        working_dir: text(&world.directory)?,
        read_paths,
    })
}

/// The program as a shell would find it: a name in `$PATH`, anything with a slash where it says.
/// Links are not followed: what a link is called can matter to the program behind it.
fn find_program(program: &str, world: &World) -> Result<PathBuf, Failed> {
    if program.contains('/') {
        let path = existing(Path::new(program), world)?;
        return if is_program(&path) {
            Ok(path)
        } else {
            Err(Failed::new(format!("{} is not an executable file", path.display()))
                .hint("`chmod +x` makes it one"))
        };
    }
    let search_path = world.search_path.as_deref().unwrap_or(OsStr::new("/usr/bin:/bin"));
    std::env::split_paths(search_path)
        .map(|directory| world.directory.join(directory).join(program))
        .find(|path| is_program(path))
        .ok_or_else(|| {
            Failed::not_found(format!("no program `{program}` in $PATH"))
                .hint(format!("name its path: --exec \"./{program} …\""))
        })
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, Access::EXEC_OK).is_ok()
}

fn existing(path: &Path, world: &World) -> Result<PathBuf, Failed> {
    // Without `.` and double slashes, but with `..`, which means something else behind a link.
    let absolute: PathBuf = world.directory.join(path).components().collect();
    match absolute.try_exists() {
        Ok(true) => Ok(absolute),
        Ok(false) => Err(Failed::not_found(format!("there is no {}", absolute.display()))
            .hint("a plugin is a directory with a plugin.yaml, a manifest, or an executable")),
        Err(error) => {
            Err(Failed::new(format!("{} cannot be looked at: {error}", absolute.display())))
        }
    }
}

fn text(path: &Path) -> Result<String, Failed> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| Failed::new(format!("{} is not UTF-8: rename it", path.display())))
}

async fn list(node: &Node, terminal: &mut Terminal, json: bool) -> Result<Exit, Failed> {
    let plugins = answer(node.admin().plugin_list(PluginListRequest {})).await?.plugins;
    if json {
        terminal.json(&show::plugin::documents(&plugins))?;
    } else {
        let text = show::plugin::list(&plugins, terminal.colour);
        terminal.print(&text)?;
    }
    Ok(Exit::Ok)
}

async fn info(
    args: &Named,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let request = PluginInfoRequest { name: args.name().into() };
    let plugin = answer(node.admin().plugin_info(request)).await.map_err(unknown)?;
    if json {
        terminal.json(&show::plugin::document(&plugin))?;
    } else {
        let text = show::plugin::info(&plugin, terminal.colour);
        terminal.print(&text)?;
    }
    Ok(Exit::Ok)
}

async fn logs(
    args: &Logs,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    if args.tail == Some(0) && !args.follow {
        return Ok(Exit::Ok);
    }
    let request = PluginLogsRequest {
        name: args.plugin.name().into(),
        follow: args.follow,
        // The API says 0 for everything; of a log that is followed, one line is close to none.
        tail: args.tail.map_or(0, |tail| tail.max(1)),
        since_ms: args.since.map_or(0, |since| since.as_millis().max(1) as u64),
        level: args.level.clone().unwrap_or_default(),
        contains: args.grep.clone().unwrap_or_default(),
        stream: args.stream.clone().unwrap_or_default(),
    };
    let mut lines = answer(node.admin().plugin_logs(request)).await.map_err(unknown)?;
    while let Some(line) = lines.message().await.map_err(|s| unknown(Failed::admin(&s)))? {
        let text = if json {
            show::plugin::log_json(&line)
        } else {
            show::plugin::log_text(&line, terminal.colour)
        };
        terminal.print(&text)?;
    }
    Ok(Exit::Ok)
}

async fn unload(
    args: &Named,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let name = args.name();
    terminal.progress(&format!("waiting for {name} to finish what it has"));
    let request = PluginUnloadRequest { name: name.into() };
    answer(node.admin().plugin_unload(request)).await.map_err(unknown)?;
    if json {
        terminal.json(&json!({"unloaded": name}))?;
    } else {
        terminal.print(&format!("{name} was unloaded"))?;
    }
    Ok(Exit::Ok)
}

async fn restart(
    args: &Named,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let name = args.name();
    terminal.progress(&format!("waiting for {name} to be ready again"));
    let request = PluginRestartRequest { name: name.into() };
    let plugin = answer(node.admin().plugin_restart(request)).await.map_err(unknown)?;
    changed(&plugin, &format!("{name} was started again"), terminal, json)
}

async fn reload(
    args: &Named,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let name = args.name();
    terminal.progress(&format!("waiting for {name} to be ready again"));
    let request = PluginReloadRequest { name: name.into() };
    let plugin = answer(node.admin().plugin_reload(request)).await.map_err(unknown)?;
    changed(&plugin, &format!("{name} was reloaded: {}", plugin.version), terminal, json)
}

async fn scale(
    args: &Scale,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let Scale { name, instances } = args;
    terminal.progress(&format!("waiting until {name} has {instances} instances"));
    let request = PluginScaleRequest { name: name.clone(), instances: *instances };
    let plugin = answer(node.admin().plugin_scale(request)).await.map_err(unknown)?;
    let count = plugin.instances.len();
    let noun = if count == 1 { "instance" } else { "instances" };
    changed(&plugin, &format!("{name} has {count} {noun}"), terminal, json)
}

async fn limit(
    args: &Limit,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let request = PluginLimitRequest {
        name: args.name.clone(),
        cpu_percent: args.cpu,
        cpu_cores: args.cpu_cores,
        cpu_seconds: args.cpu_seconds,
        memory_bytes: args.memory,
        files_max: args.files,
        file_size_bytes: args.file_size,
        processes_max: args.processes,
        disk_bytes: args.disk,
        disk_bandwidth: args.disk_bandwidth,
        network_bandwidth: args.network_bandwidth,
    };
    let plugin = answer(node.admin().plugin_limit(request)).await.map_err(unknown)?;
    let mut text = format!("{} may use from now on:", plugin.name);
    for it in &plugin.mechanisms {
        for part in ["\n  ", &it.resource, " ", &it.limit, " (", &it.means, ")"] {
            text.push_str(part);
        }
    }
    changed(&plugin, &text, terminal, json)
}

/// Shows a plugin after something was done to it.
fn changed(
    plugin: &Loaded,
    text: &str,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    if json {
        terminal.json(&show::plugin::document(plugin))?;
    } else {
        terminal.print(&clean(text))?;
    }
    Ok(Exit::Ok)
}

fn unknown(failed: Failed) -> Failed {
    match failed.exit {
        Exit::NotFound => failed.hint("`blackhole plugin list` shows what is loaded"),
        _ => failed,
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::{
        args::{Cli, Command},
        places::{Places, Wishes},
    };

    fn request(directory: &Path, words: &[&str]) -> Result<PluginLoadRequest, Failed> {
        let line = ["blackhole", "plugin", "load"].iter().chain(words);
        let cli = Cli::try_parse_from(line).expect("valid");
        let Command::Plugin(Plugin::Load(args)) = cli.command else { panic!("load expected") };
        let world = World {
            places: Places::find(&Wishes::default(), |_| None),
            directory: directory.into(),
            search_path: Some("/nonexistent:/usr/bin:/bin".into()),
        };
        load_request(&args, &world)
    }

    fn exec_of(request: PluginLoadRequest) -> Exec {
        match request.from {
            Some(Source::Exec(exec)) => exec,
            other => panic!("a command line expected, not {other:?}"),
        }
    }

    #[test]
    fn a_path_reaches_the_node_absolute() {
        let here = tempfile::tempdir().expect("a directory");
        std::fs::create_dir(here.path().join("counter")).expect("made");
        let request = request(here.path(), &["./counter", "--wait", "--name", "n"]).expect("good");
        let expected = here.path().join("counter").display().to_string();
        assert_eq!(request.from, Some(Source::Path(expected)));
        assert!(request.wait);
        assert_eq!(request.name, "n");
    }

    #[test]
    fn a_path_that_does_not_exist_is_named_in_full() {
        let here = tempfile::tempdir().expect("a directory");
        let failed = request(here.path(), &["counter"]).expect_err("absent");
        assert_eq!(failed.exit, Exit::NotFound);
        let full = here.path().join("counter");
        assert_eq!(failed.message, format!("there is no {}", full.display()));
    }

    #[test]
    fn a_command_line_is_split_as_a_shell_would_and_its_program_found() {
        let here = tempfile::tempdir().expect("a directory");
        let words =
            ["--exec", "sh -c 'echo \"a b\"' x\\ y", "--listen", "tcp:5051", "--service", "a.B"];
        let exec = exec_of(request(here.path(), &words).expect("good"));
        assert!(exec.argv[0].starts_with('/') && exec.argv[0].ends_with("/sh"), "{:?}", exec.argv);
        assert_eq!(exec.argv[1..], ["-c", "echo \"a b\"", "x y"]);
        assert_eq!(exec.listen, "tcp:5051");
        assert_eq!(exec.services, ["a.B"]);
        assert_eq!(exec.working_dir, here.path().display().to_string());
    }

    #[test]
    fn a_command_line_that_cannot_run_is_refused_before_the_node_is_asked() {
        let here = tempfile::tempdir().expect("a directory");
        std::fs::write(here.path().join("text"), "x").expect("written");
        let refused = |line: &str| {
            request(here.path(), &["--exec", line, "--listen", "unix"]).expect_err(line)
        };
        assert_eq!(refused("'open").exit, Exit::Usage);
        assert_eq!(refused("").exit, Exit::Usage);
        assert_eq!(refused("no-such-program-anywhere").exit, Exit::NotFound);
        assert_eq!(refused("./absent").exit, Exit::NotFound);
        assert!(refused("./text").message.ends_with("is not an executable file"));
    }

    #[test]
    fn waiting_says_for_what() {
        let plugin = Loaded {
            name: "kv".into(),
            state: "loaded".into(),
            reason: "not serving yet".into(),
            ..Loaded::default()
        };
        assert_eq!(
            waiting_for(Some(&plugin), "3s"),
            "waiting for kv to become ready (3s, loaded: not serving yet)"
        );
    }
}
