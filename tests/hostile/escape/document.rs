//! The list of attacks in `docs/src/threat-model.md` is the one that is tried here.
//!
//! `BH_WRITE_DOCS=1` writes it anew.

use std::{env, fmt::Write as _, fs};

use testnet::binaries;

use super::{Attack, Expected, Layer, Setting, attacks};

const BEGIN: &str = "<!-- attacks: written by tests/hostile/escape/document.rs -->\n";
const END: &str = "<!-- end of attacks -->\n";

const COLUMNS: [(&str, Setting); 5] = [
    ("root", Setting { root: true, off: None }),
    ("user", Setting { root: false, off: None }),
    ("Landlock off", Setting { root: false, off: Some(Layer::Landlock) }),
    ("seccomp off", Setting { root: false, off: Some(Layer::Seccomp) }),
    ("namespaces off", Setting { root: false, off: Some(Layer::Namespaces) }),
];

fn cell(attack: &Attack, setting: Setting) -> &'static str {
    if !attack.is_tried(setting) {
        return "the user may not";
    }
    match attack.expected(setting) {
        Expected::Refused => "refused",
        Expected::Done => "**open**",
        Expected::Either => "depends",
    }
}

fn tables() -> String {
    let mut text = String::from(BEGIN);
    for (title, rows) in attacks() {
        let _ = write!(text, "\n### {title}\n\n| Attack | Stopped by, each alone | errno |");
        for (column, _) in COLUMNS {
            let _ = write!(text, " {column} |");
        }
        text.push_str("\n|---|---|---|---|---|---|---|---|\n");
        for row in rows {
            let layers: Vec<&str> = row.by.iter().map(|layer| layer.name()).collect();
            let refused = row.refused.join(", ");
            let _ = write!(text, "| {} | {} | {refused} |", row.title, layers.join(", "));
            for (_, setting) in COLUMNS {
                let _ = write!(text, " {} |", cell(row, setting));
            }
            text.push('\n');
        }
    }
    text.push('\n');
    text.push_str(END);
    text
}

#[test]
fn the_threat_model_lists_the_attacks_that_are_tried() {
    let path = binaries::repository().join("docs").join("src").join("threat-model.md");
    let text = fs::read_to_string(&path).expect("the threat model");
    let (before, rest) = text.split_once(BEGIN).expect("the place where the tables begin");
    let (_, after) = rest.split_once(END).expect("the place where the tables end");
    let wanted = format!("{before}{}{after}", tables());
    if env::var_os("BH_WRITE_DOCS").is_some() {
        fs::write(&path, &wanted).expect("written");
    }
    let found = fs::read_to_string(&path).expect("the threat model");
    assert!(found == wanted, "{} is out of date: BH_WRITE_DOCS=1 writes it", path.display());
}
