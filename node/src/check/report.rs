//! What a check found, for people and for programs.

use serde_json::{Value, json};

/// What became of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It is kept; what was seen.
    Pass(String),
    /// It is broken; what was seen, and what to do about it.
    Fail(String, &'static str),
    /// It does not apply, or what it is about is not offered.
    Skip(String),
}

/// One rule and its verdict.
#[derive(Debug, Clone)]
pub struct Rule {
    pub id: &'static str,
    pub says: &'static str,
    pub verdict: Verdict,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Report {
    pub plugin: String,
    pub rules: Vec<Rule>,
}

impl Report {
    /// No rule is broken.
    pub fn is_kept(&self) -> bool {
        self.count("fail") == 0
    }

    fn count(&self, word: &str) -> usize {
        self.rules.iter().filter(|rule| rule.word() == word).count()
    }

    /// Writes it to standard output.
    pub fn show(&self, json: bool) {
        use std::io::Write;
        let text = if json { self.json().to_string() } else { self.text() };
        // A closed standard output is nobody's mistake.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }

    fn json(&self) -> Value {
        let rules: Vec<Value> = self.rules.iter().map(Rule::json).collect();
        json!({
            "plugin": self.plugin,
            "kept": self.is_kept(),
            "passed": self.count("pass"),
            "failed": self.count("fail"),
            "skipped": self.count("skip"),
            "rules": rules,
        })
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for rule in &self.rules {
            let (seen, advice) = rule.seen();
            let line = format!("{:4}  {}  {}: {seen}\n", rule.word(), rule.id, rule.says);
            text.push_str(&line);
            if !advice.is_empty() {
                for part in ["           ", advice, "\n"] {
                    text.push_str(part);
                }
            }
        }
        let sum = format!(
            "{}: {} passed, {} failed, {} skipped",
            self.plugin,
            self.count("pass"),
            self.count("fail"),
            self.count("skip")
        );
        text.push_str(&sum);
        // What a plugin said must not steer a terminal.
        text.chars().map(|c| if c.is_control() && c != '\n' { ' ' } else { c }).collect()
    }
}

impl Rule {
    fn word(&self) -> &'static str {
        match self.verdict {
            Verdict::Pass(_) => "pass",
            Verdict::Fail(..) => "fail",
            Verdict::Skip(_) => "skip",
        }
    }

    fn seen(&self) -> (&str, &str) {
        match &self.verdict {
            Verdict::Pass(seen) | Verdict::Skip(seen) => (seen, ""),
            Verdict::Fail(seen, advice) => (seen, advice),
        }
    }

    fn json(&self) -> Value {
        let (seen, advice) = self.seen();
        json!({
            "id": self.id, "rule": self.says, "verdict": self.word(), "seen": seen,
            "advice": advice,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_broken_rule_is_enough_and_what_is_not_offered_is_not_broken() {
        let rule = |verdict| Rule { id: "C01", says: "starts", verdict };
        let mut report = Report { plugin: "p".into(), rules: Vec::new() };
        report.rules.push(rule(Verdict::Pass("ready".into())));
        report.rules.push(rule(Verdict::Skip("not offered".into())));
        assert!(report.is_kept());
        report.rules.push(rule(Verdict::Fail("\u{1b}[2Jgone".into(), "mend it")));
        assert!(!report.is_kept());
        assert_eq!(report.json()["failed"], 1);
        let text = report.text();
        assert!(text.contains("mend it") && !text.contains('\u{1b}'), "{text}");
    }
}
