//! What plugins were refused and what left their jails, for the metrics endpoint: read from the
//! host when somebody looks, not kept twice.

use plugin_host::Host;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder},
    metrics::{MetricType, counter::ConstCounter},
};
use protocol::manifest::permission::Kind;

/// Counters of every plugin of a host.
pub struct PluginMeters(pub Host);

impl std::fmt::Debug for PluginMeters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PluginMeters")
    }
}

impl Collector for PluginMeters {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let plugins = self.0.list();
        let counter = MetricType::Counter;
        let help = "Attempts that were refused for want of a permission, by plugin and kind";
        let mut denials =
            encoder.encode_descriptor("blackhole_plugin_denials", help, None, counter)?;
        for plugin in &plugins {
            for kind in Kind::ALL {
                let count = plugin.counts.denials[kind as usize];
                let labels = [("plugin", plugin.name.as_str()), ("kind", kind.as_str())];
                one(denials.encode_family(&labels)?, count)?;
            }
        }
        let help = "Connections that the egress proxy made for a plugin";
        let mut connections = encoder.encode_descriptor(
            "blackhole_plugin_egress_connections",
            help,
            None,
            counter,
        )?;
        for plugin in &plugins {
            let labels = [("plugin", plugin.name.as_str())];
            one(connections.encode_family(&labels)?, plugin.counts.connections)?;
        }
        let help = "Bytes that the egress proxy carried for a plugin, by direction";
        let mut bytes =
            encoder.encode_descriptor("blackhole_plugin_egress_bytes", help, None, counter)?;
        for plugin in &plugins {
            let counts = &plugin.counts;
            for (direction, count) in [("out", counts.sent_bytes), ("in", counts.received_bytes)] {
                let labels = [("plugin", plugin.name.as_str()), ("direction", direction)];
                one(bytes.encode_family(&labels)?, count)?;
            }
        }
        Ok(())
    }
}

fn one(encoder: MetricEncoder<'_>, count: u64) -> Result<(), std::fmt::Error> {
    ConstCounter::new(count).encode(encoder)
}
