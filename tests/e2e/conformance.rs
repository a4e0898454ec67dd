//! `blackhole plugin check`: plugins in three languages keep the contract, and those that do not
//! are told which rule they break.

use protocol::proto::admin::plugin_load_request::From;
use serde_json::Value;
use testnet::{
    Must,
    client::{Cli, run},
    cluster::World,
    foreign::Foreign,
    packages,
};

/// The report on a plugin, and whether the command said that all is well.
async fn check(words: &[String]) -> (Value, bool) {
    let cli = Cli::alone().must();
    let mut all = vec!["--json".to_owned(), "plugin".into(), "check".into()];
    all.extend_from_slice(words);
    let outcome = run(cli.command(&all)).await.must();
    let report = outcome.report();
    let told = serde_json::from_str(&outcome.out);
    (told.unwrap_or_else(|error| panic!("{error}: {report}")), outcome.code == Some(0))
}

/// The rules with this verdict.
fn rules<'a>(report: &'a Value, verdict: &str) -> Vec<&'a str> {
    let all = report["rules"].as_array().expect("rules").iter();
    all.filter(|rule| rule["verdict"] == verdict).filter_map(|rule| rule["id"].as_str()).collect()
}

/// The words that check the program of `from`.
fn words(from: From) -> Vec<String> {
    match from {
        From::Path(path) => vec![path],
        From::Exec(exec) => {
            let quoted: Vec<String> = exec.argv.iter().map(|word| format!("'{word}'")).collect();
            let mut words = vec!["--exec".to_owned(), quoted.join(" ")];
            words.extend(["--listen".to_owned(), exec.listen]);
            for path in exec.read_paths.into_iter().chain([exec.working_dir]) {
                words.extend(["--read".to_owned(), path]);
            }
            words
        }
    }
}

#[tokio::test]
async fn our_own_plugins_keep_every_rule() {
    for name in ["echo", "counter", "kv"] {
        let path = packages::plugin(name).must().display().to_string();
        let (report, kept) = check(&[path]).await;
        assert!(kept && report["kept"] == true, "{report:#}");
        // What else there is they offer: these take no configuration, and drain on SIGTERM.
        assert_eq!(rules(&report, "skip"), ["C16", "C20", "C18"], "{report:#}");
    }
}

#[tokio::test]
async fn unchanged_programs_in_python_and_go_keep_what_applies_to_them() {
    let foreign = Foreign::ready().must();
    for from in [foreign.greeter().must(), foreign.clock().must()] {
        let (report, kept) = check(&words(from)).await;
        assert!(kept && rules(&report, "fail").is_empty(), "{report:#}");
        assert!(rules(&report, "pass").len() >= 8, "{report:#}");
    }
}

#[tokio::test]
async fn a_guest_keeps_what_applies_to_it() {
    let path = testnet::binaries::repository().join("plugins").join("wasm-echo");
    let (report, kept) = check(&[path.display().to_string()]).await;
    assert!(kept, "{report:#}");
    assert!(rules(&report, "skip").contains(&"C14"), "it has no process: {report:#}");
}

#[tokio::test]
async fn those_that_break_the_contract_are_told_the_rule() {
    let world = World::new().must();
    let short = "stop_grace: 2s\nstart_timeout: 5s";
    for (trick, rule) in [
        ("ignore-sigterm", "C14"),
        ("never-ready", "C01"),
        ("panic-on-configuration", "C16"),
        ("drop-calls", "C17"),
        ("bad-figures", "C20"),
        ("hang-on-drain", "C18"),
        ("lie-about-name", "C07"),
        ("double-fork", "C19"),
    ] {
        let dir = packages::misfit(world.path(), trick, &[trick], short).must();
        let (report, kept) = check(&[dir.display().to_string()]).await;
        assert!(!kept && rules(&report, "fail").contains(&rule), "{trick}: {report:#}");
        let broken = report["rules"].as_array().expect("rules").iter();
        let mut broken = broken.filter(|it| it["verdict"] == "fail");
        assert!(broken.all(|it| it["advice"].as_str().is_some_and(|advice| !advice.is_empty())));
    }
}

#[tokio::test]
async fn what_is_said_on_standard_output_is_no_protocol_and_breaks_nothing() {
    let world = World::new().must();
    let tricks = ["write-on-handshake", "offer-everything"];
    let dir = packages::misfit(world.path(), "talker", &tricks, "").must();
    let (report, kept) = check(&[dir.display().to_string()]).await;
    assert!(kept && rules(&report, "skip").is_empty(), "it offers everything: {report:#}");
    let all = report["rules"].as_array().expect("rules").iter();
    let output = all.clone().find(|it| it["id"] == "C15").expect("tried");
    let seen = output["seen"].as_str().unwrap_or_default();
    assert!(!seen.starts_with("0 lines"), "{output:#}");
}
