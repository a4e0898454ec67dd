//! Runs a bootstrap peer: the same build, run and drain, with fewer rooms.

use peer::{Notice, PeerConfig};

use crate::{
    args::BootstrapArgs,
    config::{default_data_dir, default_listen},
    data::DataDir,
    log,
    signals::{Signals, Told},
    store::Database,
    voice::{Ready, Say, Voice},
};

/// From flags to a clean end.
pub async fn run(args: BootstrapArgs) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let voice = Voice::new(args.mesh.json);
    let data_dir = args
        .data_dir
        .clone()
        .unwrap_or_else(|| default_data_dir().with_file_name("blackhole-bootstrap"));
    let data = DataDir::open(&std::path::absolute(data_dir)?)?;
    let key = data.identity()?;
    let database = Database::open(&data.path().join("store"))?;
    let level = args.mesh.log_level.as_deref().unwrap_or("info");
    log::start(level, args.mesh.json, "bootstrap").map_err(anyhow::Error::msg)?;
    let network = args.mesh.network.clone().unwrap_or_default();
    let listen =
        if args.mesh.listen.is_empty() { default_listen() } else { args.mesh.listen.clone() };
    let config = PeerConfig {
        name: "bootstrap".into(),
        listen,
        bootstrap: args.mesh.bootstrap.clone(),
        external: args.mesh.external.clone(),
        ..PeerConfig::new(key, network.clone())
    };
    let peer = bootstrap::start(config, database.space("peer")).await?;
    let mut notices = peer.notices();
    let view = peer.view();
    voice.say(&Say::Ready(&Ready {
        role: "bootstrap",
        peer_id: view.id.to_string(),
        name: "bootstrap".into(),
        network: network.to_string(),
        listen: view.listen.iter().map(|address| format!("{address}/p2p/{}", view.id)).collect(),
        data_dir: data.path().display().to_string(),
        bootstraps: args.mesh.bootstrap.len(),
        ..Ready::default()
    }));
    loop {
        tokio::select! {
            told = signals.told() => match told {
                Told::Stop => break,
                // It has no configuration file.
                Told::ReadAgain => {}
            },
            notice = notices.recv() => if let Ok(notice) = notice {
                tell(voice, network.as_str(), &notice);
            },
        }
    }
    voice.say(&Say::Stopping);
    peer.shutdown().await;
    drop(data);
    voice.say(&Say::Stopped);
    Ok(())
}

/// Says what a peer noticed.
pub fn tell(voice: Voice, network: &str, notice: &Notice) {
    match notice {
        Notice::Joined { through } => {
            voice.say(&Say::Joined { network, through: &through.to_string() });
        }
        Notice::BootstrapUnreachable { address, error, retry_in } => {
            voice.say(&Say::Unreachable {
                address: &address.to_string(),
                cause: error,
                retry_seconds: retry_in.as_secs_f64(),
            });
        }
        Notice::Foreign { reason, .. } => voice.say(&Say::Warning(reason)),
        Notice::Listening(_) => {}
    }
}
