//! The report: one list for programs, one table for people, and the same table for a page.

use std::fmt::Write as _;
use std::{fs, path::Path, path::PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::load::median;

/// One figure of the report.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// A name of its own, such as `start_warm_p50_ms` or `calls.two-peers.p50`.
    pub name: String,
    /// The median of the runs; `null` where it was skipped.
    pub value: f64,
    /// `ms`, `req/s`, `KiB`; empty for ratios and counts.
    pub unit: &'static str,
    /// What there is to reach: a number that was set, or the peer's value in the same run. Absent
    /// for figures that are only told.
    pub reach: Option<f64>,
    /// Which side of `reach` is the good one.
    pub better: Better,
    /// How often it was measured.
    pub runs: usize,
    /// The least of the runs.
    pub min: f64,
    /// The most of the runs.
    pub max: f64,
    /// What else was measured in the same run, and `value` is compared with.
    pub peer: Option<String>,
    /// How it was measured.
    pub method: String,
}

/// Which of two values is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    Lower,
    Higher,
}

impl Figure {
    /// A figure from its runs, with nothing to reach.
    pub fn of(
        name: impl Into<String>,
        unit: &'static str,
        better: Better,
        runs: &[f64],
        method: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            value: median(runs),
            unit,
            reach: None,
            better,
            runs: runs.len(),
            min: runs.iter().copied().fold(f64::INFINITY, f64::min),
            max: runs.iter().copied().fold(f64::NEG_INFINITY, f64::max),
            peer: None,
            method: method.into(),
        }
    }

    /// A figure that could not be measured: without values, and it says why.
    pub fn skipped(name: impl Into<String>, better: Better, why: &str) -> Self {
        let method = format!("skipped: {why}");
        let (value, min, max) = (f64::NAN, f64::NAN, f64::NAN);
        Self { value, min, max, ..Self::of(name, "", better, &[], method) }
    }

    /// With what there is to reach.
    pub fn reach(mut self, reach: f64) -> Self {
        self.reach = Some(reach);
        self
    }

    /// Compared with something in words.
    pub fn against(mut self, peer: impl Into<String>) -> Self {
        self.peer = Some(peer.into());
        self
    }

    /// Whether its median reaches what there is to reach; `None` where there is nothing, or it was
    /// skipped.
    pub fn is_reached(&self) -> Option<bool> {
        self.reach.filter(|_| self.runs > 0).map(|reach| match self.better {
            Better::Lower => self.value <= reach,
            Better::Higher => self.value >= reach,
        })
    }

    /// Its cells, in the order of [`HEAD`].
    fn cells(&self) -> [String; 6] {
        let reach = self.reach.map(|reach| {
            let sign = if self.better == Better::Lower { '≤' } else { '≥' };
            format!("{sign} {}", rounded(reach))
        });
        let reached = self.is_reached().map(|yes| if yes { "yes" } else { "NO" });
        let (value, extremes) = if self.runs == 0 {
            ("skipped".into(), String::new())
        } else {
            let value = format!("{} {}", rounded(self.value), self.unit);
            (value, format!("{} – {}", rounded(self.min), rounded(self.max)))
        };
        [
            self.name.clone(),
            value.trim_end().to_owned(),
            extremes,
            reach.unwrap_or_default(),
            reached.unwrap_or_default().to_owned(),
            self.peer.clone().unwrap_or_default(),
        ]
    }
}

const HEAD: [&str; 6] = ["figure", "median", "least – most", "reach", "reached", "beside"];

fn rounded(value: f64) -> String {
    match value.abs() {
        // No minus before a zero.
        size if size < 0.005 => "0".into(),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// All figures, as people read them in a terminal.
pub fn table(figures: &[Figure]) -> String {
    let lines = std::iter::once(HEAD.map(str::to_owned)).chain(figures.iter().map(Figure::cells));
    lines.fold(String::new(), |mut text, [name, value, extremes, reach, reached, peer]| {
        let line =
            format!("{name:<30} {value:>14} {extremes:>21} {reach:>10} {reached:>7}  {peer}");
        text.push_str(line.trim_end());
        text.push('\n');
        text
    })
}

/// All figures as a page in Markdown: the table, and how each was measured.
pub fn page(suite: &str, machine: &str, figures: &[Figure]) -> String {
    let mut text = format!("# Figures of suite `{suite}`\n\nMeasured on {machine}.\n\n");
    let _ = writeln!(text, "| {} | runs |", HEAD.join(" | "));
    let _ = writeln!(text, "|{}", "---|".repeat(HEAD.len() + 1));
    for figure in figures {
        let [name, rest @ ..] = figure.cells();
        let _ = writeln!(text, "| `{name}` | {} | {} |", rest.join(" | "), figure.runs);
    }
    text.push_str("\n## How each was measured\n\n");
    for figure in figures {
        let _ = writeln!(text, "- `{}`: {}", figure.name, figure.method);
    }
    text
}

/// `target/bench/report.json` of the repository.
pub fn default_path() -> PathBuf {
    testnet::binaries::repository().join("target").join("bench").join("report.json")
}

/// Writes the report, in the place of an older one.
pub fn write(path: &Path, figures: &[Figure]) -> Result<()> {
    let text = serde_json::to_string_pretty(figures)?;
    write_text(path, &(text + "\n"))
}

/// Writes `text`, in the place of an older one.
pub fn write_text(path: &Path, text: &str) -> Result<()> {
    let failed = || format!("cannot write {}", path.display());
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory).with_context(failed)?;
    }
    fs::write(path, text).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_reached_on_its_good_side_only() {
        let of = |better| Figure::of("f", "ms", better, &[3.0, 1.0, 2.0], "by hand");
        assert_eq!(of(Better::Lower).is_reached(), None);
        assert_eq!(of(Better::Lower).reach(2.0).is_reached(), Some(true));
        assert_eq!(of(Better::Lower).reach(1.9).is_reached(), Some(false));
        assert_eq!(of(Better::Higher).reach(2.1).is_reached(), Some(false));
        assert_eq!(of(Better::Higher).reach(2.0).is_reached(), Some(true));
    }

    #[test]
    fn the_report_has_the_fields_that_its_readers_know() {
        let figure = Figure::of("f", "ms", Better::Lower, &[-1.0, 2.0], "by hand").reach(3.0);
        let json = serde_json::to_value(&figure).expect("plain data");
        let mut keys: Vec<&String> = json.as_object().expect("an object").keys().collect();
        keys.sort();
        let known =
            ["better", "max", "method", "min", "name", "peer", "reach", "runs", "unit", "value"];
        assert_eq!(keys, known);
        assert_eq!((&json["better"], &json["runs"]), (&"lower".into(), &2.into()));
        assert_eq!((&json["min"], &json["max"]), (&(-1.0).into(), &2.0.into()));
        assert!(json["peer"].is_null());
    }

    #[test]
    fn a_skipped_figure_is_reported_without_a_value() {
        let figure = Figure::skipped("f", Better::Lower, "no such program").reach(3.0);
        let json = serde_json::to_value(&figure).expect("plain data");
        assert!(json["value"].is_null() && json["min"].is_null() && json["runs"] == 0);
        assert_eq!((figure.is_reached(), figure.cells()[1].as_str()), (None, "skipped"));
    }

    #[test]
    fn the_page_tells_each_figure_and_its_method() {
        let figures = [Figure::of("f_ms", "ms", Better::Lower, &[2.0], "by hand").reach(1.0)];
        let page = page("host", "a machine", &figures);
        assert!(page.contains("| `f_ms` | 2.00 ms | 2.00 – 2.00 | ≤ 1.00 | NO |  | 1 |"), "{page}");
        assert!(page.contains("- `f_ms`: by hand"), "{page}");
    }
}
