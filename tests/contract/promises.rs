//! `docs/promises.md` tells the state of every requirement: none is forgotten, none is invented.

use std::collections::BTreeMap;

use crate::tree;

/// How many requirements each domain has: the papers' and the design card's, 436 in all.
const DOMAINS: [(&str, u32); 21] = [
    ("NODE", 34),
    ("RUN", 39),
    ("PLUG", 39),
    ("SWAP", 24),
    ("MESH", 26),
    ("DISC", 13),
    ("ROUTE", 16),
    ("RES", 24),
    ("ECON", 16),
    ("MKT", 17),
    ("SEC", 20),
    ("GATE", 14),
    ("OBS", 16),
    ("CLI", 28),
    ("APP", 16),
    ("REF", 5),
    ("DEP", 10),
    ("F2", 19),
    ("PERF", 35),
    ("TEST", 15),
    ("DOC", 10),
];

const _: () = {
    let mut total = 0;
    let mut domain = 0;
    while domain < DOMAINS.len() {
        total += DOMAINS[domain].1;
        domain += 1;
    }
    assert!(total == 436);
};

/// The cells of every table row whose first cell is an id.
fn rows() -> BTreeMap<String, Vec<Vec<String>>> {
    let text = tree::read("docs/promises.md");
    let mut rows: BTreeMap<String, Vec<Vec<String>>> = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with('|')) {
        let cells: Vec<String> =
            line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
        let id = cells[0].trim_matches(['*', '`']).to_owned();
        let is_id = id.split_once('-').is_some_and(|(domain, number)| {
            DOMAINS.iter().any(|(known, _)| *known == domain) && number.parse::<u32>().is_ok()
        });
        if is_id {
            rows.entry(id).or_default().push(cells);
        }
    }
    rows
}

#[test]
fn every_requirement_has_exactly_one_row() {
    let rows = rows();
    let wanted: Vec<String> = DOMAINS
        .iter()
        .flat_map(|(domain, count)| (1..=*count).map(move |n| format!("{domain}-{n:02}")))
        .collect();
    let missing: Vec<&String> = wanted.iter().filter(|id| !rows.contains_key(*id)).collect();
    assert!(missing.is_empty(), "not in docs/promises.md: {missing:?}");
    let invented: Vec<&String> = rows.keys().filter(|id| !wanted.contains(id)).collect();
    assert!(invented.is_empty(), "not a requirement: {invented:?}");
    let doubled: Vec<&String> =
        rows.iter().filter(|(_, of_id)| of_id.len() > 1).map(|(id, _)| id).collect();
    assert!(doubled.is_empty(), "more than one row: {doubled:?}");
}

#[test]
fn every_row_tells_a_requirement_and_a_state() {
    let empty: Vec<String> = rows()
        .into_iter()
        .filter(|(_, of_id)| of_id[0].len() < 3 || of_id[0][..3].iter().any(String::is_empty))
        .map(|(id, _)| id)
        .collect();
    assert!(empty.is_empty(), "rows with an empty cell: {empty:?}");
}
