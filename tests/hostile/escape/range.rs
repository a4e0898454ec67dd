//! The shooting range: a node in one setting with an attacker and a neighbour, and the same
//! attempts outside of it.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt, chown},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use plugins::demo::{
    AddRequest, MisbehaveRequest, counter_client::CounterClient, misfit_client::MisfitClient,
};
use testnet::{
    Must, Node, NodeSetup, binaries,
    client::{Caller, run},
    cluster::World,
    foreign, packages, residue,
};
use tonic::transport::Channel;

use super::{Attack, Control, Layer, Outcome, Setting};

/// The ordinary user: an id that no person or service has.
const USER: u32 = 64_321;

/// How long one attempt may take inside, on a busy machine.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(30);

/// A node under attack.
pub(super) struct Range {
    // Dropped in this order: the node first, then what it lives in.
    node: Node,
    setting: Setting,
    attack: PathBuf,
    own: PathBuf,
    sibling: Sibling,
    scratch: tempfile::TempDir,
    docker: (PathBuf, UnixListener),
    _run: tempfile::TempDir,
    _world: World,
}

/// What is known of the neighbour.
struct Sibling {
    pid: u32,
    file: PathBuf,
    socket: PathBuf,
    mesh: PathBuf,
}

impl Range {
    /// Starts a node with an attacker and a neighbour.
    pub(super) async fn start(setting: Setting) -> Result<Self> {
        ensure!(
            rustix::process::getuid().is_root(),
            "this starts nodes as root and as another user, and needs root for it: run the tests \
             as root, as .ci/run does"
        );
        let world = World::new()?;
        open_to_all(world.path())?;
        let attack = world.path().join("attack");
        fs::copy(foreign::attack()?, &attack)?;
        open_to_all(&attack)?;
        let own = packages::misfit(world.path(), "attacker", &[], "")?;
        fs::copy(&attack, own.join("attack"))?;
        let set_uid = own.join("set-uid");
        fs::copy(&attack, &set_uid)?;
        fs::set_permissions(&set_uid, fs::Permissions::from_mode(0o4755))?;
        let neighbour = packages::variant(world.path(), "neighbour", "counter", "")?;
        fs::write(neighbour.join("secret"), "of the neighbour")?;

        let node = start_node(&world, &attack, setting).await?;
        check_layers(&node.load(&own).await?.layers, setting)?;
        let loaded = node.load(&neighbour).await?;
        let sockets = residue::files(&node.setup().run_dir().join("plugins").join("neighbour"));
        let socket = |name: &str| {
            let found = sockets.iter().find(|path| path.ends_with(name)).cloned();
            found.with_context(|| format!("no {name} among {sockets:?}"))
        };
        let sibling = Sibling {
            pid: loaded.pid,
            file: neighbour.join("secret"),
            socket: socket("plugin.sock")?,
            mesh: socket("mesh.sock")?,
        };
        // On the file system of /etc, or a hard link could not succeed anywhere.
        let scratch = tempfile::Builder::new().prefix("bh-scratch-").tempdir_in("/var/tmp")?;
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o1777))?;
        let run = tempfile::Builder::new().prefix("bh-docker-").tempdir_in("/run")?;
        open_to_all(run.path())?;
        let path = run.path().join("docker.sock");
        let listener = UnixListener::bind(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
        let docker = (path, listener);
        Ok(Self { node, setting, attack, own, sibling, scratch, docker, _run: run, _world: world })
    }

    /// What `words` mean here; the scratch directory is the plugin's `/tmp` inside.
    pub(super) fn filled(&self, words: &str) -> String {
        self.fill(words, "/tmp")
    }

    fn fill(&self, words: &str, scratch: &str) -> String {
        let setup = self.node.setup();
        let text = |path: &Path| path.display().to_string();
        let names = [
            ("{scratch}", scratch.to_owned()),
            ("{own}", text(&self.own)),
            ("{key}", text(&setup.data_dir().join("identity.key"))),
            ("{data}", text(&setup.data_dir())),
            ("{run}", text(&setup.run_dir())),
            ("{admin}", text(&self.node.ready().admin)),
            ("{docker}", text(&self.docker.0)),
            ("{core-pattern}", "/proc/sys/kernel/core_pattern".into()),
            ("{node-pid}", self.node.process().pid().to_string()),
            ("{sibling-pid}", self.sibling.pid.to_string()),
            ("{sibling-file}", text(&self.sibling.file)),
            ("{sibling-socket}", text(&self.sibling.socket)),
            ("{sibling-mesh}", text(&self.sibling.mesh)),
        ];
        names.iter().fold(words.to_owned(), |words, (name, value)| words.replace(name, value))
    }

    /// The attack where nothing holds it.
    pub(super) async fn outside(&self, attack: &Attack) -> Result<Outcome> {
        self.control(attack.outside.unwrap_or(attack.words), attack.control).await
    }

    /// Runs `words` in the node's network, without any jail.
    pub(super) async fn control(&self, words: &str, who: Control) -> Result<Outcome> {
        let words = self.fill(words, &self.scratch.path().display().to_string());
        let mut command = Command::new(&self.attack);
        command.args(["in", &self.node.process().pid().to_string()]);
        let ordinary = match who {
            Control::Same => !self.setting.root,
            Control::Root => false,
            Control::Ordinary => true,
        };
        if ordinary {
            command.args(["as", &USER.to_string()]);
        }
        command.args(words.split(' ')).current_dir("/");
        let done = run(command).await?;
        read(&done.out).with_context(|| done.report())
    }

    /// The attacker runs `words`.
    pub(super) async fn inside(&self, words: &str) -> Result<Outcome> {
        let words = self.filled(words);
        let words = std::iter::once("attack").chain(words.split(' ')).map(str::to_owned);
        let mut request = tonic::Request::new(MisbehaveRequest {
            trick: "run".into(),
            amount: 0,
            words: words.collect(),
        });
        request.set_timeout(ATTEMPT_WITHIN);
        let answer = MisfitClient::new(self.channel()?).misbehave(request).await;
        let told = answer.map_err(|status| anyhow::anyhow!("{status}"))?.into_inner().told;
        read(&told)
    }

    /// The node and the neighbour live, and answer.
    pub(super) async fn is_well(&self) {
        let request = AddRequest { name: "calm".into(), amount: 1 };
        CounterClient::new(self.channel().must()).add(request).await.must();
        assert!(self.node.process().ended().is_none(), "{}", self.node.process().evidence(40));
        let neighbour = self.node.plugin("neighbour").await.must();
        assert_eq!((neighbour.crashes, neighbour.pid), (0, self.sibling.pid), "{neighbour:?}");
    }

    /// Its network is its own, so that calls come by its socket.
    fn channel(&self) -> Result<Channel> {
        Ok(Caller::of_socket(&self.node.ready().mesh)?.channel())
    }
}

async fn start_node(world: &World, attack: &Path, setting: Setting) -> Result<Node> {
    // Beside the world, where every user may read and run it.
    let executable = world.path().join("bh-peer");
    let built = binaries::find("bh-peer")?;
    if fs::hard_link(&built, &executable).is_err() {
        fs::copy(&built, &executable)?;
    }
    let user = if setting.root { 0 } else { USER };
    let mut setup = NodeSetup::peer(world.path(), "t-escape", "n");
    setup.executable = Some(executable);
    let words = [attack.display().to_string(), "cloud".into(), user.to_string()];
    setup.through_program = words.to_vec();
    fs::create_dir(&setup.dir)?;
    chown(&setup.dir, Some(user), Some(user))?;
    if let Some(off) = setting.off {
        let key = off.name().to_lowercase();
        let config = world.path().join("blackhole.yaml");
        fs::write(&config, format!("plugins:\n  {key}: off\n"))?;
        setup = setup.with(["--config", config.to_str().context("a path in UTF-8")?]);
    }
    setup.start().await
}

/// The status names the layers that the setting means, or something else would be tested.
fn check_layers(layers: &[String], setting: Setting) -> Result<()> {
    let names = [
        (Layer::Namespaces, "user-ns"),
        (Layer::Seccomp, "seccomp"),
        (Layer::Landlock, "landlock"),
    ];
    for (layer, name) in names {
        let there = layers.iter().any(|found| found.starts_with(name));
        let wanted = setting.off != Some(layer);
        ensure!(there == wanted, "{}: {name}: {there}, in {layers:?}", setting.name());
    }
    Ok(())
}

fn open_to_all(path: &Path) -> Result<()> {
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

/// Reads what `attack` printed.
fn read(printed: &str) -> Result<Outcome> {
    match printed.trim().split_once(' ') {
        None if printed.trim() == "done" => Ok(Outcome::Done),
        Some(("refused", errno)) => Ok(Outcome::Refused(errno.to_owned())),
        _ => bail!("attack said {printed:?}"),
    }
}
