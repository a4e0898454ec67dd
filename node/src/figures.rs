//! The plugins on the metrics page: what the host counts of each process, and what each counts of
//! itself. Read when the page is asked for; nothing is kept.

use std::fmt;

use plugin_host::{Host, PluginStatus};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, gauge::ConstGauge},
};

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

/// Every plugin of this node.
pub struct Figures(pub Host);

impl fmt::Debug for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
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
        if instances.iter().all(|one| one.metrics.is_empty()) {
            return Ok(());
        }
        let (name, help) = ("blackhole_plugin_figure", "What a plugin counts of itself, by name");
        let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for one in &instances {
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
}

fn of(one: &PluginStatus) -> Labels {
    vec![("plugin".into(), one.name.clone()), ("number".into(), one.number.to_string())]
}
