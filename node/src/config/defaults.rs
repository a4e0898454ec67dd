//! What services of the node may use where the configuration does not say: one table for those that
//! are built in and for those that paper 004 foresees.

use protocol::manifest::Resources;

/// One service's limits.
struct Row {
    name: &'static str,
    memory_bytes: u64,
    /// Of each process, before it is started again.
    cpu_seconds: Option<u64>,
    cores: u32,
    /// Percent of one core that it gets where cores are scarce; source: paper 004, *Core Services*.
    guaranteed: Option<u32>,
    files: Option<u64>,
    disk_bytes: Option<u64>,
}

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Source: paper 004, *Node Configuration*; `telemetry` is not in it. That one runs as long as the
/// node does and samples all the time, so it has no end of CPU time.
const TABLE: [Row; 5] = [
    Row {
        name: "identity",
        memory_bytes: 512 * MIB,
        cpu_seconds: Some(3_600),
        cores: 1,
        guaranteed: Some(50),
        files: Some(1_024),
        disk_bytes: None,
    },
    Row {
        name: "storage",
        memory_bytes: 2 * GIB,
        cpu_seconds: Some(7_200),
        cores: 2,
        guaranteed: Some(100),
        files: Some(4_096),
        disk_bytes: Some(100 * GIB),
    },
    Row {
        name: "ledger",
        memory_bytes: GIB,
        cpu_seconds: Some(3_600),
        cores: 1,
        guaranteed: Some(50),
        files: Some(2_048),
        disk_bytes: None,
    },
    Row {
        name: "analytics",
        memory_bytes: GIB,
        cpu_seconds: Some(3_600),
        cores: 1,
        guaranteed: None,
        files: None,
        disk_bytes: None,
    },
    Row {
        name: "telemetry",
        memory_bytes: 256 * MIB,
        cpu_seconds: None,
        cores: 1,
        guaranteed: None,
        files: Some(1_024),
        disk_bytes: None,
    },
];

/// What the service `name` may use where nothing else is said; nothing for names that are not in
/// the table.
pub(super) fn resources(name: &str) -> Resources {
    let Some(row) = TABLE.iter().find(|row| row.name == name) else { return Resources::default() };
    Resources {
        memory_bytes: Some(row.memory_bytes),
        cpu_seconds: row.cpu_seconds,
        // As `cpu_cores` in the configuration: a share, and as many cores to have it on.
        cpu_cores: Some(row.cores),
        cpu_percent: Some(row.cores * 100),
        cpu_guaranteed: row.guaranteed,
        files_max: row.files,
        disk_bytes: row.disk_bytes,
        ..Resources::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ConfigFile;

    const PAPER: &str = include_str!("../../tests/paper004.yaml");

    #[test]
    fn the_papers_own_figures_are_the_defaults() {
        // The paper writes out for each service what the table says.
        let written = |text: &str| {
            let file = ConfigFile::parse(text).expect("valid");
            file.services.into_iter().map(|(name, it)| (name, it.resources)).collect::<Vec<_>>()
        };
        let off = PAPER.replace("enabled: true", "enabled: false");
        let all = written(&off);
        let names: Vec<&str> = all.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["analytics", "identity", "ledger", "storage"]);
        for (name, limits) in &all {
            assert_eq!(resources(name), *limits, "{name}");
            let silent = format!("services: {{ {name}: {{ enabled: false }} }}\n");
            assert_eq!(written(&silent), [(name.clone(), *limits)]);
        }
    }

    #[test]
    fn the_papers_guaranteed_shares_and_instance_counts_are_read() {
        let percent = |name| resources(name).cpu_guaranteed;
        assert_eq!(percent("identity"), Some(50));
        assert_eq!((percent("storage"), percent("ledger")), (Some(100), Some(50)));
        // As the paper's examples have them; what is not built in yet is said, not refused.
        let text = "services:\n  identity: { instances: 10 }\n  storage: { enabled: true, instances: 3 }\n  \
                    analytics: { enabled: true, instances: 2 }\n";
        let file = ConfigFile::parse(text).expect("valid");
        assert_eq!(file.services["identity"].instances, Some(10));
        assert_eq!(file.warnings.len(), 2, "{:?}", file.warnings);
        let off = text.replace("enabled: true", "enabled: false");
        let file = ConfigFile::parse(&off).expect("valid");
        let counts = ["storage", "analytics"].map(|name| file.services[name].instances);
        assert_eq!(counts, [Some(3), Some(2)]);
    }

    #[test]
    fn what_the_configuration_says_wins_and_the_rest_stays() {
        let text = "services: { identity: { resources: { memory: 1GB } } }\n";
        let file = ConfigFile::parse(text).expect("valid");
        let limits = file.services["identity"].resources;
        assert_eq!((limits.memory_bytes, limits.files_max), (Some(GIB), Some(1_024)));
    }
}
