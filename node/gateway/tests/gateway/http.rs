//! Health, metrics and the index over plain HTTP.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use blackhole_gateway::{
    HealthReport, Meters, NodeHealth, PluginCondition, PluginHealth, ProcessUse, health_routes,
    metrics_routes, serve_http,
};
use bytes::Bytes;
use futures::FutureExt;
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::support::DRAIN;

fn report(status: NodeHealth) -> HealthReport {
    let storage = PluginHealth {
        condition: PluginCondition::Healthy,
        reason: None,
        version: "0.3.1".into(),
        uptime: Some(Duration::from_secs(75)),
        process: Some(ProcessUse { pid: 1003, memory_bytes: 1_288_490_189, cpu_percent: 14.6 }),
        memory_limit_bytes: Some(2 << 30),
        restarts: 1,
        last_health_check: Some("2024-01-15T10:30:00Z".into()),
        offers: vec!["storage.v1.Blobs".into()],
    };
    let analytics = PluginHealth {
        condition: PluginCondition::Stopped,
        reason: Some("disabled".into()),
        version: "1.0.0".into(),
        uptime: None,
        process: None,
        memory_limit_bytes: None,
        restarts: 0,
        last_health_check: None,
        offers: Vec::new(),
    };
    let services = BTreeMap::from([("storage".into(), storage), ("analytics".into(), analytics)]);
    HealthReport {
        status,
        version: "1.0.0".into(),
        uptime: Duration::from_mins(24 * 60 + 35),
        orchestrator: ProcessUse { pid: 1001, memory_bytes: 125 << 20, cpu_percent: 2.0 },
        services,
    }
}

struct Server {
    address: String,
    stop: CancellationToken,
    served: JoinHandle<()>,
}

impl Server {
    async fn start(routes: axum::Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").to_string();
        let stop = CancellationToken::new();
        let served =
            tokio::spawn(serve_http(listener, routes, Meters::default(), stop.clone(), DRAIN));
        Self { address, stop, served }
    }

    async fn health(status: NodeHealth) -> Self {
        let source = move || {
            let report = report(status.clone());
            async move { report }.boxed()
        };
        Self::start(health_routes(Arc::new(source))).await
    }

    async fn get(&self, path: &str) -> (u16, String, String) {
        let client: Client<_, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
        let uri = format!("http://{}{path}", self.address).parse().expect("an address");
        let response = client.get(uri).await.expect("an answer");
        let status = response.status().as_u16();
        let kind = response.headers().get("content-type").map(|kind| kind.to_str().expect("text"));
        let kind = kind.unwrap_or_default().to_owned();
        let body = response.into_body().collect().await.expect("a whole answer").to_bytes();
        (status, kind, String::from_utf8(body.to_vec()).expect("text"))
    }

    async fn json(&self, path: &str) -> (u16, Value) {
        let (status, kind, body) = self.get(path).await;
        assert_eq!(kind, "application/json");
        (status, serde_json::from_str(&body).expect("JSON"))
    }

    async fn stop(self) {
        self.stop.cancel();
        self.served.await.expect("it ends in order");
    }
}

#[tokio::test]
async fn health_has_the_documented_shape_and_a_number_beside_every_string() {
    let server = Server::health(NodeHealth::Healthy).await;
    let (status, body) = server.json("/health").await;
    assert_eq!(status, 200);
    assert_eq!(
        body,
        json!({
            "status": "healthy",
            "version": "1.0.0",
            "uptime": "24h35m",
            "uptime_seconds": 88_500,
            "orchestrator": {
                "pid": 1001,
                "memory": "125MB",
                "memory_bytes": 131_072_000,
                "cpu": "2%",
                "cpu_percent": 2.0,
            },
            "services": {
                "storage": {
                    "status": "healthy",
                    "version": "0.3.1",
                    "uptime": "1m15s",
                    "uptime_seconds": 75,
                    "restarts": 1,
                    "pid": 1003,
                    "memory": "1.2GB/2GB",
                    "memory_bytes": 1_288_490_189,
                    "memory_limit_bytes": 2_147_483_648_u64,
                    "cpu": "15%",
                    "cpu_percent": 14.6,
                    "last_health_check": "2024-01-15T10:30:00Z",
                    "offers": ["storage.v1.Blobs"],
                },
                "analytics": {
                    "status": "stopped",
                    "reason": "disabled",
                    "version": "1.0.0",
                    "restarts": 0,
                    "offers": [],
                },
            },
        })
    );
    server.stop().await;
}

#[tokio::test]
async fn an_unhealthy_node_answers_503_and_says_why() {
    let server = Server::health(NodeHealth::Unhealthy("the store cannot be written".into())).await;
    let (status, body) = server.json("/health").await;
    assert_eq!(status, 503);
    assert_eq!(body["status"], "unhealthy");
    assert_eq!(body["reason"], "the store cannot be written");
}

#[tokio::test]
async fn each_plugin_has_its_own_page_under_its_name_and_its_services() {
    let server = Server::health(NodeHealth::Healthy).await;
    for path in ["/health/storage", "/health/storage.v1.Blobs"] {
        let (status, body) = server.json(path).await;
        assert_eq!(status, 200, "{path}");
        assert_eq!((&body["service"], &body["status"]), (&json!("storage"), &json!("healthy")));
        assert_eq!((&body["version"], &body["uptime"]), (&json!("0.3.1"), &json!("1m15s")));
    }
    let (status, body) = server.json("/health/analytics").await;
    assert_eq!((status, &body["reason"]), (503, &json!("disabled")));
    let (status, body) = server.json("/health/nobody").await;
    assert_eq!(status, 404);
    assert!(body["error"].as_str().expect("a sentence").contains("nobody"));
}

#[tokio::test]
async fn the_index_tells_what_is_here() {
    let server = Server::health(NodeHealth::Healthy).await;
    let (status, body) = server.json("/").await;
    assert_eq!((status, &body["name"]), (200, &json!("blackhole")));
    assert!(body["paths"]["/health"].is_string());
    assert_eq!(server.get("/nothing").await.0, 404);
}

#[tokio::test]
async fn metrics_are_open_metrics_text() {
    let mut registry = Registry::default();
    let counter = Counter::<u64>::default();
    counter.inc();
    registry.register("blackhole_tests", "Tests that ran", counter);
    let server = Server::start(metrics_routes(Arc::new(registry))).await;
    let (status, kind, body) = server.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(kind.starts_with("application/openmetrics-text"), "{kind}");
    assert!(body.contains("blackhole_tests_total 1\n"), "{body}");
    assert!(body.ends_with("# EOF\n"), "{body}");
    server.stop().await;
}
