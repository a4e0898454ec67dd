//! The metrics page, whole or as far as it is about one plugin, for scrapers and for the telemetry
//! service.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::get,
};
use http::{StatusCode, header::CONTENT_TYPE};
use plugin_host::Host;
use prometheus_client::{encoding::text, registry::Registry};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /metrics`, and `GET /metrics/<plugin or service>`: what is about that one alone.
pub fn routes(registry: &Arc<Registry>, host: Host) -> Router {
    let own = Router::new().route("/metrics/{service}", get(service));
    let own = own.with_state((Arc::clone(registry), host));
    gateway::metrics_routes(Arc::clone(registry)).merge(own)
}

async fn service(
    State((registry, host)): State<(Arc<Registry>, Host)>,
    Path(asked): Path<String>,
) -> Response {
    match page_of(&registry, &host, &asked) {
        Some(page) => ([(CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        None => (StatusCode::NOT_FOUND, nobody(&asked)).into_response(),
    }
}

/// What is said where no plugin is `asked`.
pub fn nobody(asked: &str) -> String {
    format!("no plugin of this node is called or offers {asked}")
}

/// Everything.
pub fn page(registry: &Registry) -> String {
    let mut page = String::new();
    // Writing into memory does not fail, and a collector that does leaves what came before it.
    let _ = text::encode(&mut page, registry);
    page
}

/// What is about the plugin that is called, or offers, `asked`; `None` where there is none.
pub fn page_of(registry: &Registry, host: &Host, asked: &str) -> Option<String> {
    let plugin = host.list().into_iter().find(|plugin| {
        plugin.name == asked || plugin.services.iter().any(|service| service.to_string() == asked)
    })?;
    let services = plugin.services.iter().map(|name| format!("service=\"{name}\""));
    let about: Vec<String> = services.chain([format!("plugin=\"{}\"", plugin.name)]).collect();
    Some(only(&page(registry), &about))
}

/// The lines of `page` that have one of these labels, each family with its description.
fn only(page: &str, labels: &[String]) -> String {
    let mut kept = String::new();
    // Of the family that is read: said with its first line that is kept.
    let mut description = String::new();
    let mut begun = false;
    for line in page.lines().filter(|line| *line != END) {
        if line.starts_with('#') {
            if std::mem::take(&mut begun) {
                description.clear();
            }
            description.extend([line, "\n"]);
            continue;
        }
        begun = true;
        if labels.iter().any(|label| has(line, label)) {
            kept.push_str(&std::mem::take(&mut description));
            kept.extend([line, "\n"]);
        }
    }
    kept.extend([END, "\n"]);
    kept
}

/// The last line. Source: OpenMetrics 1.0.
const END: &str = "# EOF";

/// A quote within a value is escaped, so no value can pass for a label.
fn has(line: &str, label: &str) -> bool {
    let before = |at: usize| line[..at].chars().next_back();
    line.match_indices(label).any(|(at, _)| matches!(before(at), Some('{' | ',')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_one_plugin_has_its_lines_and_their_descriptions_only() {
        let page = "# HELP up Runs\n# TYPE up gauge\nup{plugin=\"a\"} 1\nup{plugin=\"b\"} 1\n\
                    # HELP calls Calls\n# TYPE calls counter\ncalls_total{service=\"x.A\"} 2\n\
                    # HELP other Other\n# TYPE other gauge\nother{own_x=\"plugin=\\\"a\\\"\"} 3\n\
                    # EOF\n";
        let about = ["service=\"x.A\"".to_owned(), "plugin=\"a\"".to_owned()];
        let expected = "# HELP up Runs\n# TYPE up gauge\nup{plugin=\"a\"} 1\n\
                        # HELP calls Calls\n# TYPE calls counter\ncalls_total{service=\"x.A\"} 2\n\
                        # EOF\n";
        assert_eq!(only(page, &about), expected);
        assert_eq!(only(page, &[]), "# EOF\n");
    }
}
