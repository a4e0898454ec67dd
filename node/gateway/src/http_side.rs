//! What the gateway answers over plain HTTP: health, metrics, and an index of both.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, State},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::future::BoxFuture;
use http::{StatusCode, header::CONTENT_TYPE};
use prometheus_client::{encoding::text, registry::Registry};
use serde_json::json;

use crate::report::{HealthReport, NodeHealth, Page, PluginCondition};

/// Where `GET /health` gets its answer. Implemented by closures that return the report's future.
pub trait HealthSource: Send + Sync + 'static {
    /// The node's health now; may take milliseconds, not more.
    fn report(&self) -> BoxFuture<'static, HealthReport>;
}

impl<F> HealthSource for F
where
    F: Fn() -> BoxFuture<'static, HealthReport> + Send + Sync + 'static,
{
    fn report(&self) -> BoxFuture<'static, HealthReport> {
        self()
    }
}

/// `GET /`, `GET /health` and `GET /health/<plugin or service>`: 200 when healthy, 503 when not,
/// 404 for what is not here.
pub fn health_routes(source: Arc<dyn HealthSource>) -> Router {
    Router::new()
        .route("/", get(index))
        .route("/health", get(health))
        .route("/health/{service}", get(service_health))
        .with_state(source)
}

/// `GET /metrics`: everything in `registry`, in the OpenMetrics text format.
pub fn metrics_routes(registry: Arc<Registry>) -> Router {
    Router::new().route("/metrics", get(metrics)).with_state(registry)
}

async fn index() -> Json<serde_json::Value> {
    Json(json!({
        "name": "blackhole",
        "version": env!("CARGO_PKG_VERSION"),
        "paths": {
            "/health": "this node and its plugins",
            "/health/<service>": "one plugin, by its name or a gRPC service it offers",
            "POST /<package.Service>/<Method>":
                "any method of the mesh, in gRPC-Web, Connect or gRPC",
            "GET /<package.Service>/<Method>":
                "the same in a WebSocket, or by Connect where it has no side effects",
        },
    }))
}

async fn health(State(source): State<Arc<dyn HealthSource>>) -> Response {
    let report = source.report().await;
    let status = match report.status {
        NodeHealth::Healthy => StatusCode::OK,
        NodeHealth::Unhealthy(_) => StatusCode::SERVICE_UNAVAILABLE,
    };
    (status, Json(report)).into_response()
}

async fn service_health(
    State(source): State<Arc<dyn HealthSource>>,
    Path(asked): Path<String>,
) -> Response {
    let report = source.report().await;
    let named = report.services.get_key_value(&asked);
    let found =
        named.or_else(|| report.services.iter().find(|(_, plugin)| plugin.offers.contains(&asked)));
    let Some((name, plugin)) = found else {
        let error = format!("no plugin of this node is called or offers {asked}");
        return (StatusCode::NOT_FOUND, Json(json!({ "error": error }))).into_response();
    };
    let status = if plugin.condition == PluginCondition::Healthy {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(Page { name, plugin })).into_response()
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let mut page = String::new();
    match text::encode(&mut page, &registry) {
        Ok(()) => ([(CONTENT_TYPE, OPEN_METRICS)], page).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
