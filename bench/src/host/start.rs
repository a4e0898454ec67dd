//! How long one plugin takes to start, in the jail and without.

use std::{path::PathBuf, time::Instant};

use anyhow::{Result, ensure};
use testnet::packages;

use super::{
    Plan, proc,
    stand::{Stand, Steps},
};
use crate::{
    grpc::Call,
    load::quantile,
    report::{Better, Figure},
};

/// The jail as it is by default.
const JAILED: &str = "";

/// No layer of it that an operator may turn off.
const UNJAILED: &str =
    "plugins:\n  namespaces: off\n  landlock: off\n  seccomp: off\n  cgroups: off\n";

/// How far the host's clock and ours may be apart, in milliseconds: both read the same one, and
/// its log keeps thousandths.
const CLOCKS_DIFFER_MS: f64 = 0.01;

/// A peer with one plugin to start again and again.
struct Subject {
    stand: Stand,
    plugin: PathBuf,
}

/// One start.
struct Start {
    steps: Steps,
    /// From the order to load it to an answered call through the peer, in milliseconds.
    to_call_ms: f64,
}

impl Subject {
    async fn new(configuration: &str) -> Result<Self> {
        let stand = Stand::start(configuration).await?;
        // As the SDK's guide has it: the socket is the host's, and the plugin takes it over.
        let plugin = packages::variant(&stand.plugins(), "started", "echo", "listen: fd")?;
        Ok(Self { stand, plugin })
    }

    async fn start(&self) -> Result<Start> {
        let begun = Instant::now();
        self.stand.loader().load(&self.plugin).await?;
        self.stand.call_when_routed(&Call::say()).await?;
        let to_call_ms = begun.elapsed().as_secs_f64() * 1_000.0;
        let steps = self.stand.steps("started").await?;
        self.stand.unload("started").await?;
        let Steps { executed_ms, answered_ms, ready_ms } = steps;
        ensure!(
            executed_ms <= answered_ms
                && answered_ms <= ready_ms
                && ready_ms <= to_call_ms + CLOCKS_DIFFER_MS,
            "the host's account {steps:?} does not fit the {to_call_ms} ms that were seen"
        );
        Ok(Start { steps, to_call_ms })
    }

    fn files(&self) -> [PathBuf; 2] {
        [self.plugin.join("echo"), self.plugin.join("plugin.yaml")]
    }
}

/// What the runs of one kind of start yield.
#[derive(Default)]
struct Runs {
    p50: Vec<f64>,
    p99: Vec<f64>,
    executed: Vec<f64>,
    to_call: Vec<f64>,
}

impl Runs {
    fn add(&mut self, starts: &[Start]) {
        let of = |value: fn(&Start) -> f64| starts.iter().map(value).collect::<Vec<_>>();
        let answered = of(|start| start.steps.answered_ms);
        self.p50.push(quantile(&answered, 0.5));
        self.p99.push(quantile(&answered, 0.99));
        self.executed.push(quantile(&of(|start| start.steps.executed_ms), 0.5));
        self.to_call.push(quantile(&of(|start| start.to_call_ms), 0.5));
    }
}

pub async fn measure(plan: Plan) -> Result<Vec<Figure>> {
    let (jailed, bare) = (Subject::new(JAILED).await?, Subject::new(UNJAILED).await?);
    let (mut warm, mut plain, mut cold) = (Runs::default(), Runs::default(), Runs::default());
    // The first start of all finds nothing where it will be later.
    jailed.start().await?;
    bare.start().await?;
    let mut how_cold = "";
    for _ in 0..plan.runs {
        let (mut with, mut without) = (Vec::new(), Vec::new());
        for _ in 0..plan.starts {
            with.push(jailed.start().await?);
            without.push(bare.start().await?);
        }
        warm.add(&with);
        plain.add(&without);
        let mut chilled = Vec::new();
        for _ in 0..plan.cold_starts {
            how_cold = proc::drop_caches(&jailed.files().each_ref().map(PathBuf::as_path))?;
            chilled.push(jailed.start().await?);
        }
        cold.add(&chilled);
    }
    jailed.stand.stop().await?;
    bare.stand.stop().await?;
    Ok(figures(plan, &warm, &plain, &cold, how_cold))
}

fn figures(plan: Plan, warm: &Runs, plain: &Runs, cold: &Runs, how_cold: &str) -> Vec<Figure> {
    let ratios: Vec<f64> =
        warm.p50.iter().zip(&plain.p50).map(|(jail, bare)| jail / bare).collect();
    let each = format!("{} starts a run, one after another", plan.starts);
    let clock = "by the host's own log, from before anything is made for it to its first answered \
                 RPC (the host's question for its health); each start was seen to answer a call \
                 from outside later than that";
    let warm_way = format!("echo, in Rust, in the jail that is the default; {clock}; {each}");
    let of = |name: &str, unit, runs: &[f64], way: &str| {
        Figure::of(name, unit, Better::Lower, runs, way)
    };
    let to_call = "from the order on the admin socket, which reads the manifest and ends with the \
                   plugin remembered on disk, to an answered call through the peer's gRPC port";
    vec![
        of("start_warm_p50_ms", "ms", &warm.p50, &warm_way).reach(3.0),
        of("start_warm_p99_ms", "ms", &warm.p99, &warm_way).reach(10.0),
        of("start_warm_exec_p50_ms", "ms", &warm.executed, &format!(
            "the part of start_warm_p50_ms until the jail stood and the program was executed; {each}"
        )),
        of("start_jail_ratio", "", &ratios, &format!(
            "start_warm_p50_ms against the same plugin on a peer that has every layer off that can \
             be turned off, in turns; {each}"
        ))
        .reach(2.0)
        .against(format!("{:.2} ms unjailed", crate::load::median(&plain.p50))),
        of("start_cold_ms", "ms", &cold.p50, &format!(
            "as start_warm_p50_ms, {how_cold} before each of {} starts a run; the peer itself, \
             which is the launcher too, stays loaded", plan.cold_starts
        ))
        .reach(20.0),
        of("start_to_call_p50_ms", "ms", &warm.to_call, &format!("{to_call}; {each}")).reach(100.0),
        of("start_cold_to_call_ms", "ms", &cold.to_call, &format!("{to_call}; {how_cold}")),
    ]
}
