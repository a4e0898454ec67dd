//! Every way out of a jail that is known by name, tried from inside.
//!
//! One row of a table is one attack: the same program with the same words is run outside of any
//! jail, where it must succeed, and by a plugin, where it must be refused with an errno that was
//! written down before. A refusal that has no success beside it proves nothing.
//!
//! The rows are tried in every [`Setting`]: the node as root and as an ordinary user, with all
//! layers and with one of them turned off. A row names the layers of which *each alone* refuses
//! it. Where one of them is off the others must hold, and where the only one is off the attack
//! must succeed: so it is proven that it was this layer, and not luck, that held.
//!
//! [`document`] keeps `docs/src/threat-model.md` the same as these tables.

mod document;
mod files;
mod handles;
mod kernel;
mod network;
mod ordinary;
mod processes;
mod range;

use std::fmt::Write as _;

use range::Range;
use testnet::Must;

/// What can refuse an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    /// Own namespaces, the private root, no capabilities, an id of its own: `namespaces`.
    Namespaces,
    /// The system-call filter: `seccomp`.
    Seccomp,
    /// `landlock`.
    Landlock,
    /// Closed descriptors, no new privileges, resource limits: always.
    Launcher,
}

impl Layer {
    fn name(self) -> &'static str {
        match self {
            Self::Namespaces => "namespaces",
            Self::Seccomp => "seccomp",
            Self::Landlock => "Landlock",
            Self::Launcher => "launcher",
        }
    }
}

/// Who must succeed outside of the jail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Control {
    /// The user that the node runs as.
    Same,
    /// Only root may do it at all.
    Root,
    /// An ordinary user: root has already what this is to give.
    Ordinary,
}

/// One way out.
#[derive(Debug, Clone, Copy)]
struct Attack {
    /// What is tried, for people.
    title: &'static str,
    /// Words for `attack/main.c`; `{name}` is replaced by what [`Range`] knows of.
    words: &'static str,
    /// Words of the control where they differ.
    outside: Option<&'static str>,
    /// Who must succeed outside.
    control: Control,
    /// What it is refused with, by whichever layer is asked first.
    refused: &'static [&'static str],
    /// Each of these alone refuses it.
    by: &'static [Layer],
    /// Without these it is refused on some machines all the same (by a sysctl, by a version).
    perhaps: bool,
    /// What the control is refused with on a machine that has no such thing; then the attack must
    /// still be refused.
    absent: &'static [&'static str],
}

impl Attack {
    const fn new(title: &'static str, words: &'static str, control: Control) -> Self {
        Self {
            title,
            words,
            outside: None,
            control,
            refused: &["EPERM"],
            by: &[Layer::Namespaces],
            perhaps: false,
            absent: &[],
        }
    }

    const fn same(title: &'static str, words: &'static str) -> Self {
        Self::new(title, words, Control::Same)
    }

    const fn root(title: &'static str, words: &'static str) -> Self {
        Self::new(title, words, Control::Root)
    }

    const fn outside(self, words: &'static str) -> Self {
        Self { outside: Some(words), ..self }
    }

    const fn refused(self, refused: &'static [&'static str]) -> Self {
        Self { refused, ..self }
    }

    const fn by(self, by: &'static [Layer]) -> Self {
        Self { by, ..self }
    }

    const fn perhaps(self) -> Self {
        Self { perhaps: true, ..self }
    }

    const fn absent(self, absent: &'static [&'static str]) -> Self {
        Self { absent, ..self }
    }

    /// Whether it is tried in `setting`. With the node's own view of the machine, what an ordinary
    /// user cannot do a plugin cannot do either, and there is nothing to hold.
    fn is_tried(&self, setting: Setting) -> bool {
        setting.off != Some(Layer::Namespaces) || self.control != Control::Root
    }

    fn expected(&self, setting: Setting) -> Expected {
        if self.by.iter().any(|layer| Some(*layer) != setting.off) {
            Expected::Refused
        } else if self.perhaps {
            Expected::Either
        } else {
            Expected::Done
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expected {
    Refused,
    Done,
    Either,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Done,
    Refused(String),
}

impl Outcome {
    fn is_among(&self, errnos: &[&str]) -> bool {
        matches!(self, Self::Refused(errno) if errnos.contains(&errno.as_str()))
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Done => f.write_str("done"),
            Self::Refused(errno) => f.write_str(errno),
        }
    }
}

/// How the node under attack is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setting {
    /// As root, or else as an ordinary user.
    root: bool,
    /// The layer that the operator turned off.
    off: Option<Layer>,
}

impl Setting {
    fn name(self) -> String {
        let user = if self.root { "root" } else { "ordinary user" };
        let off = self.off.map_or("all layers".into(), |off| format!("{} off", off.name()));
        format!("{user}, {off}")
    }
}

/// All tables.
fn attacks() -> impl Iterator<Item = (&'static str, &'static [Attack])> {
    [
        ("Files", files::ATTACKS),
        ("Processes, ids and namespaces", processes::ATTACKS),
        ("The kernel", kernel::ATTACKS),
        ("Network and sockets", network::ATTACKS),
        ("Descriptors and terminals", handles::ATTACKS),
    ]
    .into_iter()
}

/// Tries every row in `setting` and prints what came of it; fails with all that went wrong.
async fn try_all(setting: Setting) {
    let range = Range::start(setting).await.must();
    let mut evidence = format!("--- {}\n", setting.name());
    let mut wrong = String::new();
    let mut tried = 0;
    let rows = attacks().flat_map(|(_, rows)| rows).filter(|row| row.is_tried(setting));
    for attack in rows {
        tried += 1;
        let control = range.outside(attack).await.must();
        let inside = range.inside(attack.words).await.must();
        let line =
            format!("{:<40} outside: {control:<14} inside: {inside}", range.filled(attack.words));
        let _ = writeln!(evidence, "{line}");
        if let Some(mistake) = mistake(attack, setting, &control, &inside) {
            let _ = writeln!(wrong, "{line}  <- {mistake}");
        }
    }
    if setting.off != Some(Layer::Namespaces) {
        for words in ordinary::ALLOWED {
            let (control, inside) = (
                range.control(words, Control::Same).await.must(),
                range.inside(words).await.must(),
            );
            let _ = writeln!(evidence, "{words:<40} outside: {control:<14} inside: {inside}");
            if (&control, &inside) != (&Outcome::Done, &Outcome::Done) {
                let _ = writeln!(wrong, "{words}: outside {control}, inside {inside}  <- allowed");
            }
        }
    }
    println!("{evidence}{tried} attacks");
    range.is_well().await;
    assert!(wrong.is_empty(), "{}:\n{wrong}", setting.name());
}

/// What is wrong with a row's outcomes.
fn mistake(
    attack: &Attack,
    setting: Setting,
    control: &Outcome,
    inside: &Outcome,
) -> Option<&'static str> {
    let absent = control.is_among(attack.absent);
    if *control != Outcome::Done && !absent {
        return Some("the control must succeed, or nothing is proven");
    }
    let refused = inside.is_among(attack.refused) || absent && inside.is_among(attack.absent);
    match attack.expected(setting) {
        Expected::Refused if *inside == Outcome::Done => Some("IT ESCAPED"),
        Expected::Refused if !refused => Some("refused, and not as foreseen"),
        Expected::Done if !absent && *inside != Outcome::Done => {
            Some("another layer held: name it in the row")
        }
        _ => None,
    }
}

macro_rules! settings {
    ($($name:ident: $root:literal, $off:expr;)*) => {
        $(#[tokio::test]
        async fn $name() {
            try_all(Setting { root: $root, off: $off }).await;
        })*
    };
}

settings! {
    no_attack_succeeds_on_a_node_of_root: true, None;
    no_attack_succeeds_on_a_node_of_an_ordinary_user: false, None;
    without_landlock_the_other_layers_hold_for_root: true, Some(Layer::Landlock);
    without_landlock_the_other_layers_hold_for_a_user: false, Some(Layer::Landlock);
    without_seccomp_only_the_doors_it_closes_are_open_for_root: true, Some(Layer::Seccomp);
    without_seccomp_only_the_doors_it_closes_are_open_for_a_user: false, Some(Layer::Seccomp);
    without_namespaces_landlock_and_seccomp_hold_what_they_can: false, Some(Layer::Namespaces);
}

#[test]
fn every_row_says_what_it_is_refused_with_and_by_whom() {
    for (_, rows) in attacks() {
        for row in rows {
            assert!(!row.by.is_empty() && !row.refused.is_empty(), "{}", row.title);
            let twice = attacks().flat_map(|(_, rows)| rows).filter(|one| one.title == row.title);
            assert_eq!(twice.count(), 1, "two rows are called {}", row.title);
        }
    }
}
