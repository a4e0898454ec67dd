//! What is made of the measurements: each subject's own figures, and those that compare.

use super::{Measure, Plan, Results, Run};
use crate::load::median;
use crate::report::{Better, Figure};

/// A measurement of a subject.
type Cell = (&'static str, Measure);

/// A figure that compares subjects.
struct Comparison {
    name: &'static str,
    better: Better,
    reach: f64,
    /// What is compared.
    of: Cell,
    /// With what: the sum of these.
    with: &'static [Cell],
    /// What the value is.
    value: Value,
}

/// How a comparison's value is computed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Value {
    /// What is compared, divided by what it is compared with.
    Ratio,
    /// The other way round.
    Inverse,
}

use Better::{Higher, Lower};
use Measure::{P50, P99, Pinned, Rate64, Rate256};
use Value::{Inverse, Ratio};

const fn at_most(name: &'static str, reach: f64, of: Cell, with: &'static [Cell]) -> Comparison {
    Comparison { name, better: Lower, reach, of, with, value: Ratio }
}

const fn at_least(name: &'static str, reach: f64, of: Cell, with: &'static [Cell]) -> Comparison {
    Comparison { name, better: Higher, reach, of, with, value: Ratio }
}

/// The comparisons that there is something to reach of.
const COMPARISONS: &[Comparison] = &[
    at_most("local_link_p50_ratio", 2.5, ("local-link", P50), &[("frames-unix", P50)]),
    at_most("local_link_pinned_p", 2.5, ("local-link", Pinned), &[("raw-unix", Pinned)]),
    at_least("local_link_rps_vs_nats", 2.0, ("local-link", Rate256), &[("nats", Rate256)]),
    at_most("local_grpc_p50_ratio", 1.8, ("one-peer", P50), &[("direct-tcp", P50)]),
    at_least("local_grpc_rps_ratio", 0.55, ("one-peer", Rate256), &[("direct-tcp", Rate256)]),
    Comparison {
        value: Inverse,
        ..at_least("local_grpc_vs_nginx_p50", 1.0, ("one-peer", P50), &[("nginx", P50)])
    },
    at_least("local_grpc_vs_nginx_rps", 1.0, ("one-peer", Rate256), &[("nginx", Rate256)]),
    at_least("remote_link_rps_vs_nats", 1.0, ("remote-link", Rate256), &[("nats", Rate256)]),
    at_most(
        "remote_link_p50_ratio",
        1.3,
        ("remote-link", P50),
        &[("frames-unix", P50), ("frames-quic", P50), ("frames-unix", P50)],
    ),
    at_least(
        "mixed_rps_vs_erlang",
        5.0,
        ("remote-link-mixed", Rate256),
        &[("erlang-mixed", Rate256)],
    ),
    at_least("vs_erlang_rps", 5.0, ("remote-link", Rate256), &[("erlang-many", Rate256)]),
];

/// Both sides of `local_grpc_vs_nginx`.
const NGINX: &str = "local_grpc_vs_nginx";

/// `remote_grpc_rps`, and what it needs.
const REMOTE_GRPC: &str = "remote_grpc_rps";
const REMOTE_GRPC_OF: Cell = ("two-peers", Rate256);
const REMOTE_GRPC_WITH: Cell = ("direct-tcp", Rate256);

/// What [`REMOTE_GRPC`] is to reach: so many, or half of direct gRPC, whichever is lower.
const REMOTE_GRPC_RPS: f64 = 60_000.0;

/// Whether a figure whose name contains `only` needs the subject.
pub fn needs(only: &str, subject: &str) -> bool {
    let compared = COMPARISONS.iter().filter(|it| it.name.contains(only));
    let remote = REMOTE_GRPC.contains(only)
        && (REMOTE_GRPC_OF.0 == subject || REMOTE_GRPC_WITH.0 == subject);
    remote || compared.flat_map(cells).any(|(needed, _)| needed == subject)
}

fn cells(comparison: &Comparison) -> impl Iterator<Item = Cell> {
    std::iter::once(comparison.of).chain(comparison.with.iter().copied())
}

/// All figures whose own or whose subject's name contains `only`, those that compare first.
pub fn of(results: &Results, plan: Plan, only: &str) -> Vec<Figure> {
    let mut figures = Vec::new();
    for comparison in COMPARISONS.iter().filter(|it| it.name.contains(only)) {
        figures.push(compared(comparison, results, plan));
        if comparison.name.ends_with("_rps") && comparison.name.starts_with(NGINX) {
            figures.push(worse_of_nginx(results));
        }
    }
    if REMOTE_GRPC.contains(only) {
        figures.push(remote_grpc(results, plan));
    }
    for name in results.ways.keys() {
        for measure in [P50, P99, Pinned, Rate64, Rate256] {
            figures.push(told((name, measure), results, plan));
        }
    }
    figures.extend(
        results.skipped.iter().map(|(name, why)| {
            Figure::skipped(format!("calls.{name}"), Higher, why).against(*name)
        }),
    );
    figures
}

fn compared(comparison: &Comparison, results: &Results, plan: Plan) -> Figure {
    let Comparison { name, better, reach, of, with, .. } = *comparison;
    if let Some(why) = missing(cells(comparison), results) {
        return Figure::skipped(name, better, &why).reach(reach);
    }
    let values: Vec<f64> = results.runs.iter().filter_map(|run| value(comparison, run)).collect();
    let sum = |run: &Run| with.iter().filter_map(|cell| run.get(cell)).sum::<f64>();
    let peer: Vec<f64> = results.runs.iter().map(sum).collect();
    let names: Vec<String> = with.iter().map(|cell| described(*cell)).collect();
    let method = format!(
        "{} of {} ({}) against {}, run by run; {}",
        of.1.title(),
        of.0,
        results.ways[of.0],
        names.join(" + "),
        of.1.how(plan)
    );
    let figure = Figure::of(name, "", better, &values, method).reach(reach);
    figure.against(format!("{} {:.0} {}", names.join(" + "), median(&peer), of.1.unit()))
}

/// The comparison's value in one run.
fn value(comparison: &Comparison, run: &Run) -> Option<f64> {
    let of = *run.get(&comparison.of)?;
    let with: Option<f64> = comparison.with.iter().map(|cell| run.get(cell).copied()).sum();
    match comparison.value {
        Ratio => Some(of / with?),
        Inverse => Some(with? / of),
    }
}

/// Better in both: the worse of the two tells.
fn worse_of_nginx(results: &Results) -> Figure {
    let both = || COMPARISONS.iter().filter(|it| it.name.starts_with(NGINX));
    if let Some(why) = missing(both().flat_map(cells), results) {
        return Figure::skipped(NGINX, Higher, &why).reach(1.0);
    }
    let worse = |run: &Run| both().filter_map(|it| value(it, run)).reduce(f64::min);
    let values: Vec<f64> = results.runs.iter().filter_map(worse).collect();
    let method = "the lesser of local_grpc_vs_nginx_p50 (how many times sooner) and \
                  local_grpc_vs_nginx_rps (how many times more), run by run: above 1 the peer is \
                  better in both";
    Figure::of(NGINX, "", Higher, &values, method).reach(1.0).against("nginx")
}

fn remote_grpc(results: &Results, plan: Plan) -> Figure {
    let needed = [REMOTE_GRPC_OF, REMOTE_GRPC_WITH];
    if let Some(why) = missing(needed.into_iter(), results) {
        return Figure::skipped(REMOTE_GRPC, Higher, &why).reach(REMOTE_GRPC_RPS);
    }
    let of =
        |cell| results.runs.iter().filter_map(|run| run.get(&cell).copied()).collect::<Vec<_>>();
    let (remote, direct) = (of(REMOTE_GRPC_OF), of(REMOTE_GRPC_WITH));
    let method = format!(
        "{}; {}; to reach: {REMOTE_GRPC_RPS} or half of direct-tcp, whichever is lower",
        results.ways[REMOTE_GRPC_OF.0],
        Rate256.how(plan)
    );
    Figure::of(REMOTE_GRPC, Rate256.unit(), Higher, &remote, method)
        .reach(REMOTE_GRPC_RPS.min(median(&direct) / 2.0))
        .against(format!("{} {:.0} req/s", described(REMOTE_GRPC_WITH), median(&direct)))
}

/// One subject's own measurement, with nothing to reach.
fn told(cell: Cell, results: &Results, plan: Plan) -> Figure {
    let values: Vec<f64> = results.runs.iter().filter_map(|run| run.get(&cell).copied()).collect();
    let method = format!("{}; {}", results.ways[cell.0], cell.1.how(plan));
    Figure::of(described(cell), cell.1.unit(), cell.1.better(), &values, method)
}

/// Why a figure of these cannot be told, if it cannot.
fn missing(mut cells: impl Iterator<Item = Cell>, results: &Results) -> Option<String> {
    let (name, _) = cells.find(|(name, _)| !results.ways.contains_key(name))?;
    let why = results.skipped.get(name).map_or("there is no such subject", String::as_str);
    Some(format!("{name}: {why}"))
}

fn described((name, measure): Cell) -> String {
    format!("calls.{name}.{}", measure.name())
}

impl Measure {
    fn name(self) -> &'static str {
        match self {
            P50 => "p50",
            P99 => "p99",
            Pinned => "pinned-p50",
            Rate64 => "rate-64",
            Rate256 => "rate-256",
        }
    }

    fn title(self) -> &'static str {
        match self {
            P50 | Pinned => "median latency",
            P99 => "latency of 99 %",
            Rate64 | Rate256 => "calls a second",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            P50 | P99 | Pinned => "µs",
            Rate64 | Rate256 => "req/s",
        }
    }

    fn better(self) -> Better {
        if self.unit() == "µs" { Lower } else { Higher }
    }

    fn how(self, plan: Plan) -> String {
        let (single, loaded) = (plan.single.as_secs_f64(), plan.loaded.as_secs_f64());
        match self {
            P50 | P99 => format!("32 B, one call after another, {single} s a run"),
            Pinned => format!(
                "32 B, one call after another, all processes on one processor, {single} s a run"
            ),
            Rate64 => format!("32 B, 64 in flight from one client, {loaded} s a run"),
            Rate256 => format!("32 B, 256 in flight from one client, {loaded} s a run"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn results(runs: &[(f64, f64)]) -> Results {
        let runs = runs.iter().map(|(peer, direct)| {
            Run::from([(("one-peer", P50), *peer), (("direct-tcp", P50), *direct)])
        });
        let ways = [("one-peer", "through a peer"), ("direct-tcp", "directly")].into();
        Results { ways, runs: runs.collect(), skipped: [("nginx", "no nginx".into())].into() }
    }

    #[test]
    fn ratios_are_computed_run_by_run() {
        let results = results(&[(20.0, 10.0), (300.0, 100.0), (90.0, 90.0)]);
        let figures = of(&results, Plan::QUICK, "local_grpc_p50_ratio");
        let figure = &figures[0];
        assert_eq!((figure.name.as_str(), figure.runs), ("local_grpc_p50_ratio", 3));
        assert!((figure.value - 2.0).abs() < 1e-9, "{figure:?}");
        assert_eq!(figure.is_reached(), Some(false));
    }

    #[test]
    fn a_figure_without_its_subject_is_listed_as_skipped() {
        let figures = of(&results(&[(2.0, 1.0)]), Plan::QUICK, "");
        let find = |name: &str| figures.iter().find(|it| it.name == name).expect("listed");
        for (name, why) in [(NGINX, "no nginx"), ("local_link_p50_ratio", "no such subject")] {
            let figure = find(name);
            assert!(figure.runs == 0 && figure.value.is_nan(), "{figure:?}");
            assert!(figure.method.contains("skipped") && figure.method.contains(why), "{figure:?}");
            assert_eq!(figure.is_reached(), None);
        }
    }

    #[test]
    fn a_figure_brings_the_subjects_that_it_needs() {
        assert!(needs("vs_nginx", "nginx") && needs("vs_nginx", "one-peer"));
        assert!(needs("remote_grpc", "two-peers") && !needs("remote_grpc", "nats"));
    }
}
