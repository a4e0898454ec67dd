//! One real call, step by step.

use protocol::proto::admin::{Candidate, TraceResponse, TraceStep};
use serde_json::{Value, json};
use tonic::Code;

use super::mesh::{provider_document, whereabouts};
use crate::{
    failed::code_name,
    terminal::{Table, Tone, clean, paint},
    units::round_trip,
};

/// The verdict, and below it a line for each step: when, how long since the one before, what.
pub fn text(traced: &TraceResponse, colour: bool) -> String {
    let verdict = paint(colour, Tone::Strong, &clean(&traced.verdict));
    let mut table = Table::new(colour, &["AT", "TOOK", "WHERE", "STEP"]).right(0).right(1);
    let mut before = 0;
    for step in &traced.steps {
        let where_to = match &step.provider {
            Some(provider) => whereabouts(provider),
            None => (String::new(), None),
        };
        let tone = match step.kind.as_str() {
            "failed" | "stopped" => Some(Tone::Bad),
            _ => None,
        };
        table.row([
            (time(step.at_us), None),
            (time(step.at_us.saturating_sub(before)), None),
            where_to,
            (step.text.clone(), tone),
        ]);
        before = step.at_us;
        for candidate in step.candidates.iter().filter(|candidate| !candidate.eligible) {
            let nothing = || (String::new(), None);
            table.row([nothing(), nothing(), nothing(), (out(candidate), None)]);
        }
    }
    format!("{verdict}\n\n{}", table.text())
}

/// Who may not answer, and why not.
fn out(candidate: &Candidate) -> String {
    let provider = candidate.provider.as_ref();
    let (plugin, peer) =
        provider.map_or(("?", "?"), |it| (it.plugin.as_str(), it.peer_id.as_str()));
    format!("  not {plugin} on {peer}: {}", candidate.why)
}

/// Zero is a time like any other here.
fn time(micros: u64) -> String {
    if micros == 0 { "0".into() } else { round_trip(micros) }
}

/// The same as JSON.
pub fn document(method: &str, traced: &TraceResponse) -> Value {
    let candidate = |one: &Candidate| {
        json!({
            "provider": one.provider.as_ref().map(provider_document),
            "eligible": one.eligible,
            "why": one.why,
        })
    };
    let step = |step: &TraceStep| {
        json!({
            "at_us": step.at_us,
            "kind": step.kind,
            "text": step.text,
            "provider": step.provider.as_ref().map(provider_document),
            "candidates": step.candidates.iter().map(candidate).collect::<Vec<_>>(),
            "ran": super::text_or_null(&step.ran),
            "reason": super::text_or_null(&step.reason),
        })
    };
    json!({
        "method": method.trim_start_matches('/'),
        "verdict": traced.verdict,
        "code": code_name(Code::from(traced.code as i32)),
        "message": super::text_or_null(&traced.message),
        "total_us": traced.total_us,
        "answers": traced.answers,
        "answer_bytes": traced.answer_bytes,
        "steps": traced.steps.iter().map(step).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use protocol::proto::admin::Provider;

    use super::*;

    #[test]
    fn every_step_has_its_time_and_the_one_since() {
        let relayed = Provider {
            connected: true,
            transport: "relay".into(),
            peer_id: "12D3KooWRemote00bbbbbbbb".into(),
            plugin: "counter".into(),
            ..Provider::default()
        };
        let step = |at_us, kind: &str, text: &str| TraceStep {
            at_us,
            kind: kind.into(),
            text: text.into(),
            ..TraceStep::default()
        };
        let weighed = TraceStep {
            candidates: vec![Candidate {
                provider: Some(relayed.clone()),
                eligible: false,
                why: "has no label region=eu".into(),
            }],
            ..step(20, "weighed", "1 of 2 candidates may answer")
        };
        let chosen = TraceStep { provider: Some(relayed), ..step(30, "chosen", "chose counter") };
        let steps = vec![weighed, chosen, step(930, "answered", "it answers")];
        let traced = TraceResponse {
            verdict: "answered".into(),
            steps,
            total_us: 930,
            ..TraceResponse::default()
        };
        let text = text(&traced, false);
        assert!(text.starts_with("answered\n\n"), "{text}");
        assert!(text.contains("not counter on 12D3KooWRemote00bbbbbbbb: has no label"), "{text}");
        let last = text.lines().last().expect("lines");
        assert!(last.contains("930µs") && last.contains("900µs"), "{text}");
        assert!(text.contains("relay"), "{text}");
        let document = document("/demo.v1.Counter/Add", &traced);
        assert_eq!(
            (&document["code"], &document["steps"][1]["provider"]["transport"]),
            (&json!("OK"), &json!("relay"))
        );
    }
}
