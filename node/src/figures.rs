//! The node, its mesh and its plugins on the metrics page: what the host counts of each process,
//! and what each counts of itself. Read when the page is asked for; nothing is kept.

use std::{fmt, time::Instant};

use plugin_host::{Host, PluginStatus};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use crate::{knowledge::Knowledge, usage::Usage};

/// A label and its value.
type Labels = Vec<(String, String)>;

/// One figure of every instance.
type Figure = (&'static str, &'static str, fn(&PluginStatus) -> f64);

const OF_THE_HOST: [Figure; 8] = [
    ("blackhole_plugin_up", "1 while the process answers calls and is healthy", |it| {
        f64::from(u8::from(it.instance.is_some() && it.healthy))
    }),
    ("blackhole_plugin_restarts", "Times the process was started again", |it| it.restarts.into()),
    ("blackhole_plugin_crashes", "Times it ended without being asked to", |it| it.crashes.into()),
    ("blackhole_plugin_memory_bytes", "Resident memory of all its processes", |it| {
        it.memory_bytes as f64
    }),
    ("blackhole_plugin_cpu_percent", "Of one core, over the last sample", |it| it.cpu_percent),
    ("blackhole_plugin_threads", "Threads of its processes", |it| it.threads.into()),
    ("blackhole_plugin_open_files", "Open descriptors", |it| it.open_files.into()),
    ("blackhole_plugin_uptime_seconds", "Since it became ready; 0 while it is not", |it| {
        it.uptime.map_or(0.0, |uptime| uptime.as_secs_f64())
    }),
];

/// This node and its place in the mesh.
pub struct OfNode {
    pub knowledge: Knowledge,
    pub began: Instant,
}

impl fmt::Debug for OfNode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OfNode")
    }
}

impl Collector for OfNode {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            ConstGauge::new(value).encode(gauge)
        };
        let view = self.knowledge.peer().view();
        let offers = self.knowledge.offers();
        let providers: usize = offers.values().map(Vec::len).sum();
        let uptime = self.began.elapsed().as_secs_f64();
        gauge("blackhole_node_uptime_seconds", "Since the node began", uptime)?;
        let memory = Usage::memory_bytes() as f64;
        gauge("blackhole_node_memory_bytes", "Resident memory of the node itself", memory)?;
        gauge("blackhole_node_threads", "Threads of the node itself", Usage::threads().into())?;
        let files = Usage::open_files().into();
        gauge("blackhole_node_open_files", "Open descriptors of the node itself", files)?;
        gauge("blackhole_mesh_peers", "Connected peers of the network", view.peers.len() as f64)?;
        gauge("blackhole_mesh_peers_known", "Peers it could dial", view.known as f64)?;
        gauge("blackhole_mesh_services", "Services known in the mesh", offers.len() as f64)?;
        gauge("blackhole_mesh_providers", "Providers of them, all together", providers as f64)?;
        let mut counter = |name: &str, help: &str, value: f64| {
            let counter = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(counter)
        };
        let cpu = Usage::cpu_seconds();
        counter("blackhole_node_cpu_seconds", "User and system time of the node itself", cpu)?;
        let totals = view.counters;
        for (name, help, total) in [
            ("blackhole_mesh_connections", "Connections established", totals.established),
            ("blackhole_mesh_connections_closed", "Connections ended", totals.closed),
            ("blackhole_mesh_connections_refused", "Refused by a limit", totals.refused),
            ("blackhole_mesh_dials", "Dials begun", totals.dials),
            ("blackhole_mesh_dials_failed", "Dials that reached nobody", totals.dials_failed),
            ("blackhole_mesh_gossip", "Gossip messages received", totals.gossip_received),
            ("blackhole_mesh_gossip_dropped", "Those without room", totals.gossip_dropped),
        ] {
            counter(name, help, total as f64)?;
        }
        Ok(())
    }
}

/// Every plugin of this node.
pub struct OfPlugins(pub Host);

impl fmt::Debug for OfPlugins {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OfPlugins")
    }
}

impl Collector for OfPlugins {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let plugins = self.0.list();
        let instances: Vec<&PluginStatus> =
            plugins.iter().flat_map(|plugin| &plugin.instances).collect();
        // A family without members is a description of nothing.
        if instances.is_empty() {
            return Ok(());
        }
        for (name, help, read) in OF_THE_HOST {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for one in &instances {
                let labels = of(one);
                ConstGauge::new(read(one)).encode(family.encode_family(&labels)?)?;
            }
        }
        let (name, help) = ("blackhole_plugin_memory_limit_bytes", "What it may use; none without");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for one in &instances {
            let Some(limit) = one.memory_limit_bytes else { continue };
            let labels = of(one);
            ConstGauge::new(limit as f64).encode(family.encode_family(&labels)?)?;
        }
        let (name, help) = ("blackhole_plugin_cpu_seconds", "CPU time of all its runs, as sampled");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for one in &instances {
            let labels = of(one);
            ConstCounter::new(one.cpu_seconds).encode(family.encode_family(&labels)?)?;
        }
        let (name, help) = ("blackhole_plugin_logs_lost", "Lines its log had no room for");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for plugin in &plugins {
            let labels = [("plugin", plugin.name.as_str())];
            ConstCounter::new(plugin.logs_lost).encode(family.encode_family(&labels)?)?;
        }
        own(&instances, &mut encoder)
    }
}

/// What plugins count of themselves.
fn own(instances: &[&PluginStatus], encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
    let told = |it: &&&PluginStatus| !it.metrics.is_empty() || it.figures_refused > 0;
    let telling: Vec<&&PluginStatus> = instances.iter().filter(told).collect();
    if telling.is_empty() {
        return Ok(());
    }
    let (name, help) = ("blackhole_plugin_figures_refused", "Own figures that cannot be shown");
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for one in &telling {
        let labels = of(one);
        ConstGauge::new(f64::from(one.figures_refused)).encode(family.encode_family(&labels)?)?;
    }
    if telling.iter().all(|one| one.metrics.is_empty()) {
        return Ok(());
    }
    let (name, help) = ("blackhole_plugin_figure", "What a plugin counts of itself, by name");
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for one in telling {
        for metric in &one.metrics {
            let mut labels = of(one);
            labels.push(("name".into(), metric.name.clone()));
            // The plugin's own labels cannot pass for the host's.
            let own = metric.labels.iter().map(|(k, v)| (format!("own_{k}"), v.clone()));
            labels.extend(own);
            ConstGauge::new(metric.value).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

fn of(one: &PluginStatus) -> Labels {
    vec![("plugin".into(), one.name.clone()), ("number".into(), one.number.to_string())]
}
