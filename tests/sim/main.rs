//! A hundred registries in virtual time, with losses, crashes, partitions and forgers.
//!
//! Every run follows from its seed. `BH_SIM_SEED=7 cargo test -p blackhole-tests --test sim` runs
//! that one alone; a failure prints the seed that brings it back. `routing` does the same with
//! calls.

mod routing;

use dht_registry::Limits;
use testnet::sim::{Plan, Report, run};

/// The seeds that every test run goes through, unless `BH_SIM_SEED` names another.
fn seeds(usual: &[u64]) -> Vec<u64> {
    match std::env::var("BH_SIM_SEED") {
        Ok(seed) => vec![seed.parse().expect("BH_SIM_SEED is a whole number")],
        Err(_) => usual.to_vec(),
    }
}

fn holds(plan: Plan) -> Report {
    let seed = plan.seed;
    let report = run(plan).unwrap_or_else(|violation| panic!("{violation}"));
    println!("seed {seed}: {report:?}");
    report
}

#[test]
fn a_hundred_peers_in_turmoil_believe_no_forger_and_agree_in_the_end() {
    for seed in seeds(&[1]) {
        let report = holds(Plan::of(seed));
        assert!(report.crashes > 20 && report.restarts > 20 && report.partitions > 2);
        assert!(report.lies > 1_000 && report.penalties > 20);
        assert!(report.lookups.0 > 100 && report.lookups.1 > 50);
        assert!(report.entries_compared > 2_000);
    }
}

#[test]
fn memory_stays_within_bounds_smaller_than_the_mesh() {
    for seed in seeds(&[3]) {
        let limits = Limits { adverts_max: 40, adverts_per_peer_max: 4 };
        let plan = Plan {
            limits,
            turmoil_millis: 60_000,
            quiet_millis: 5_000,
            views_become_whole: false,
            ..Plan::of(seed)
        };
        let report = holds(plan);
        assert_eq!(report.adverts_most, 40, "the bound was reached and held");
    }
}

#[test]
fn views_become_whole_where_a_third_of_all_messages_is_lost() {
    for seed in seeds(&[4]) {
        let plan = Plan { peers: 30, forgers: 1, loss_percent: 33, ..Plan::of(seed) };
        assert!(holds(plan).entries_compared > 100);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let plan = |seed| Plan {
        peers: 20,
        forgers: 2,
        turmoil_millis: 40_000,
        quiet_millis: 75_000,
        ..Plan::of(seed)
    };
    for seed in seeds(&[5]) {
        let report = holds(plan(seed));
        assert_eq!(report, holds(plan(seed)));
        assert_ne!(report, holds(plan(seed + 1)));
    }
}

#[test]
fn the_simulator_notices_views_that_are_not_whole() {
    let silence = Plan { peers: 10, forgers: 0, loss_percent: 100, ..Plan::of(6) };
    let violation = run(silence).expect_err("nobody can hear of anybody");
    assert!(violation.to_string().contains("BH_SIM_SEED=6"), "{violation}");
}
