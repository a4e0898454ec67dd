//! The report: one list for programs, one table for people.

use std::{fs, path::Path, path::PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::load::median;

/// One figure of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// `suite.subject.measure`, such as `calls.two-peers.p50`.
    pub name: String,
    /// The median of the runs.
    pub value: f64,
    /// `µs`, `req/s`.
    pub unit: &'static str,
    /// The peer's value in the same run: what there is to reach. Absent for the peers themselves.
    pub reach: Option<f64>,
    /// `lower` or `higher`.
    pub better: &'static str,
    /// How often it was measured.
    pub runs: usize,
    /// The least of the runs.
    pub min: f64,
    /// The most of the runs.
    pub max: f64,
    /// Whom it is compared with. Absent for the peers themselves.
    pub peer: Option<String>,
    /// How it was measured.
    pub method: String,
}

impl Figure {
    /// A figure from its runs, compared with nobody.
    pub fn of(name: String, unit: &'static str, runs: &[f64], method: String) -> Self {
        let better = if unit == "µs" { "lower" } else { "higher" };
        Self {
            name,
            value: median(runs),
            unit,
            reach: None,
            better,
            runs: runs.len(),
            min: runs.iter().copied().fold(f64::INFINITY, f64::min),
            max: runs.iter().copied().fold(0.0, f64::max),
            peer: None,
            method,
        }
    }

    /// The same, beside another.
    pub fn beside(mut self, peer: &Self) -> Self {
        self.reach = Some(peer.value);
        self.peer = Some(peer.name.clone());
        self
    }

    /// Its line of the table.
    fn line(&self) -> String {
        let ratio = self.reach.filter(|reach| *reach > 0.0);
        let ratio = ratio.map(|reach| format!("{:.2} ×", self.value / reach)).unwrap_or_default();
        format!(
            "{:<34} {:>11} {:<6} {:>23} {:>8}  {}",
            self.name,
            rounded(self.value),
            self.unit,
            format!("{} – {}", rounded(self.min), rounded(self.max)),
            ratio,
            self.peer.as_deref().unwrap_or_default(),
        )
    }
}

fn rounded(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

/// All figures, as people read them.
pub fn table(figures: &[Figure]) -> String {
    let head = format!(
        "{:<34} {:>11} {:<6} {:>23} {:>8}  {}\n",
        "figure", "median", "unit", "least – most", "ratio", "beside"
    );
    figures.iter().fold(head, |text, figure| text + &figure.line() + "\n")
}

/// `target/bench/report.json` of the repository.
pub fn default_path() -> PathBuf {
    testnet::binaries::repository().join("target").join("bench").join("report.json")
}

/// Writes the report, in the place of an older one.
pub fn write(path: &Path, figures: &[Figure]) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(failed)?;
    }
    let text = serde_json::to_string_pretty(figures)?;
    fs::write(path, text + "\n").with_context(failed)
}
