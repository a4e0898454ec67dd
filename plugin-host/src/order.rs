//! In which order plugins start, from what each needs. Pure.
//!
//! Every plugin comes one level after the highest of those it needs, so that a level may start at
//! once, and stopping goes through the levels backwards. What is missing, of the wrong version, or
//! goes round in a circle is refused by name, and so is whatever needs such a plugin; the others
//! start.

use std::collections::BTreeMap;
use std::fmt;

use protocol::manifest::Dependency;
use semver::{Version, VersionReq};

/// A plugin and what it needs.
#[derive(Debug, Clone)]
pub struct Node<'a> {
    /// Its name; no two are the same.
    pub name: &'a str,
    /// Its version.
    pub version: &'a Version,
    /// What must be ready before it starts.
    pub needs: &'a [Dependency],
}

/// Who starts when, and who cannot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Places in the list that was given; each level needs only earlier ones.
    pub levels: Vec<Vec<usize>>,
    /// Places in the list that was given, and why each is refused.
    pub refused: Vec<(usize, Refusal)>,
}

/// Why a plugin cannot start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// It needs a plugin that is not there.
    Missing {
        /// What it needs.
        name: String,
        /// In these versions.
        wanted: VersionReq,
    },
    /// It needs another version of a plugin.
    Version {
        /// What it needs.
        name: String,
        /// In these versions.
        wanted: VersionReq,
        /// What there is.
        found: Version,
    },
    /// It needs itself, by way of the others.
    Circle(
        /// From the plugin back to itself.
        Vec<String>,
    ),
    /// It needs a plugin that is refused.
    Behind {
        /// Which.
        name: String,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, wanted } => {
                write!(f, "dependencies: {name} {wanted} is needed and not loaded: load it first")
            }
            Self::Version { name, wanted, found } => {
                write!(f, "dependencies: {name} {wanted} is needed, and {found} is loaded")
            }
            Self::Circle(names) => write!(
                f,
                "dependencies: {} need each other in a circle: take one dependency out",
                names.join(" -> ")
            ),
            Self::Behind { name } => {
                write!(f, "dependencies: {name} is needed and cannot start itself")
            }
        }
    }
}

/// The order for `nodes`. The same nodes give the same plan.
pub fn plan(nodes: &[Node<'_>]) -> Plan {
    let places: BTreeMap<&str, usize> =
        nodes.iter().enumerate().map(|(place, node)| (node.name, place)).collect();
    let mut refused: BTreeMap<usize, Refusal> = BTreeMap::new();
    let mut needs: Vec<Vec<usize>> = Vec::with_capacity(nodes.len());
    for (place, node) in nodes.iter().enumerate() {
        let mut own = Vec::new();
        for need in node.needs {
            match resolve(need, &places, nodes) {
                Ok(found) => own.push(found),
                Err(refusal) => {
                    refused.entry(place).or_insert(refusal);
                }
            }
        }
        own.sort_unstable();
        own.dedup();
        needs.push(own);
    }
    let mut levels = Vec::new();
    let mut level_of: Vec<Option<usize>> = vec![None; nodes.len()];
    // Each round places at least one plugin or is the last, so there are at most as many rounds
    // as plugins.
    loop {
        let open = |place: &usize| level_of[*place].is_none() && !refused.contains_key(place);
        let behind = (0..nodes.len()).filter(open).find_map(|place| {
            let lost = needs[place].iter().find(|need| refused.contains_key(need))?;
            Some((place, Refusal::Behind { name: nodes[*lost].name.into() }))
        });
        if let Some((place, refusal)) = behind {
            refused.insert(place, refusal);
            continue;
        }
        let ready = |place: &usize| needs[*place].iter().all(|need| level_of[*need].is_some());
        let level: Vec<usize> = (0..nodes.len()).filter(open).filter(ready).collect();
        if level.is_empty() {
            let Some(first) = (0..nodes.len()).find(open) else { break };
            for (place, names) in circle(first, &needs, &level_of, nodes) {
                refused.insert(place, Refusal::Circle(names));
            }
            continue;
        }
        for place in &level {
            level_of[*place] = Some(levels.len());
        }
        levels.push(level);
    }
    Plan { levels, refused: refused.into_iter().collect() }
}

fn resolve(
    need: &Dependency,
    places: &BTreeMap<&str, usize>,
    nodes: &[Node<'_>],
) -> Result<usize, Refusal> {
    let name = need.name.as_str();
    let Some(place) = places.get(name) else {
        return Err(Refusal::Missing { name: name.into(), wanted: need.version.clone() });
    };
    let found = nodes[*place].version;
    if need.version.matches(found) {
        return Ok(*place);
    }
    Err(Refusal::Version { name: name.into(), wanted: need.version.clone(), found: found.clone() })
}

/// Where nothing can start any more, following what is needed from any plugin that is left leads
/// into a circle. Every member of it, each with the way from itself to itself.
fn circle(
    first: usize,
    needs: &[Vec<usize>],
    level_of: &[Option<usize>],
    nodes: &[Node<'_>],
) -> Vec<(usize, Vec<String>)> {
    let mut path = vec![first];
    let mut at = first;
    let members = loop {
        // Some need of it is not placed: otherwise it would have been placed itself.
        let Some(next) = needs[at].iter().copied().find(|need| level_of[*need].is_none()) else {
            return vec![(at, vec![nodes[at].name.into()])];
        };
        if let Some(begin) = path.iter().position(|place| *place == next) {
            break path.split_off(begin);
        }
        path.push(next);
        at = next;
    };
    (0..members.len())
        .map(|turn| {
            let mut names: Vec<String> = (0..members.len())
                .map(|step| nodes[members[(turn + step) % members.len()]].name.to_owned())
                .collect();
            names.push(nodes[members[turn]].name.to_owned());
            (members[turn], names)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `("kv", "1.0.0", &["log ^1"])`
    type Written<'a> = (&'a str, &'a str, &'a [&'a str]);

    struct Owned {
        name: String,
        version: Version,
        needs: Vec<Dependency>,
    }

    fn need(text: &str) -> Dependency {
        let (name, version) = text.split_once(' ').unwrap_or((text, "*"));
        Dependency {
            name: name.parse().expect("a name"),
            version: version.parse().expect("a range"),
        }
    }

    fn owned(written: &[Written<'_>]) -> Vec<Owned> {
        let one = |(name, version, needs): &Written<'_>| Owned {
            name: (*name).into(),
            version: version.parse().expect("a version"),
            needs: needs.iter().map(|text| need(text)).collect(),
        };
        written.iter().map(one).collect()
    }

    fn planned(owned: &[Owned]) -> Plan {
        let nodes: Vec<Node<'_>> = owned
            .iter()
            .map(|it| Node { name: &it.name, version: &it.version, needs: &it.needs })
            .collect();
        plan(&nodes)
    }

    fn told(written: &[Written<'_>]) -> Vec<String> {
        let owned = owned(written);
        let plan = planned(&owned);
        let text = |(place, why): &(usize, Refusal)| format!("{}: {why}", owned[*place].name);
        plan.refused.iter().map(text).collect()
    }

    #[test]
    fn what_is_needed_comes_first_and_the_rest_at_once() {
        let written: &[Written<'_>] = &[
            ("app", "1.0.0", &["kv >=1.2", "log"]),
            ("kv", "1.2.0", &["log ^1"]),
            ("log", "1.0.0", &[]),
            ("lone", "0.1.0", &[]),
        ];
        let plan = planned(&owned(written));
        assert_eq!(plan.levels, [vec![2, 3], vec![1], vec![0]]);
        assert!(plan.refused.is_empty());
    }

    #[test]
    fn gaps_and_wrong_versions_are_refused_by_name_and_so_is_what_needs_them() {
        let told = told(&[
            ("app", "1.0.0", &["kv"]),
            ("kv", "1.2.0", &["log ^2"]),
            ("log", "1.0.0", &[]),
            ("web", "1.0.0", &["store >=1"]),
        ]);
        assert_eq!(
            told,
            [
                "app: dependencies: kv is needed and cannot start itself",
                "kv: dependencies: log ^2 is needed, and 1.0.0 is loaded",
                "web: dependencies: store >=1 is needed and not loaded: load it first",
            ]
        );
    }

    #[test]
    fn a_circle_is_told_from_each_of_its_members() {
        let told = told(&[
            ("a", "1.0.0", &["b"]),
            ("b", "1.0.0", &["c"]),
            ("c", "1.0.0", &["a"]),
            ("outside", "1.0.0", &["b"]),
            ("self", "1.0.0", &["self"]),
        ]);
        assert!(told[0].contains("a: dependencies: a -> b -> c -> a need each other"), "{told:?}");
        assert!(told[1].contains("b -> c -> a -> b"), "{told:?}");
        assert!(told[3].contains("b is needed and cannot start itself"), "{told:?}");
        assert!(told[4].contains("self -> self"), "{told:?}");
    }

    proptest! {
        #[test]
        fn every_plugin_is_placed_once_after_all_it_needs_or_refused(
            edges in proptest::collection::vec((0_usize..12, 0_usize..14), 0..40),
        ) {
            let mut all: Vec<Owned> = (0..12)
                .map(|n| Owned {
                    name: format!("p{n}"),
                    version: Version::new(1, 0, 0),
                    needs: Vec::new(),
                })
                .collect();
            for (from, to) in edges {
                all[from].needs.push(need(&format!("p{to}")));
            }
            let plan = planned(&all);
            let mut level_of = [None; 12];
            for (level, places) in plan.levels.iter().enumerate() {
                for place in places {
                    prop_assert!(level_of[*place].replace(level).is_none());
                }
            }
            for (place, _) in &plan.refused {
                prop_assert!(level_of[*place].is_none());
            }
            let placed = level_of.iter().flatten().count();
            prop_assert_eq!(placed + plan.refused.len(), 12);
            for (place, level) in level_of.iter().enumerate() {
                let Some(level) = level else { continue };
                for need in &all[place].needs {
                    let needed: usize = need.name.as_str()[1..].parse().expect("a number");
                    prop_assert!(level_of[needed].is_some_and(|needed| needed < *level));
                }
            }
        }
    }
}
