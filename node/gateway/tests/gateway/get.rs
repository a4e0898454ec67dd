//! Connect's calls by GET, byte for byte.

use base64::{
    Engine as _,
    engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD},
};
use blackhole_gateway::Origins;
use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use serde_json::json;

use crate::{
    support::Mesh,
    web::{Told, UNARY, Web, said},
};

const JSON: &str = "?connect=v1&encoding=json&message=%7B%22text%22%3A%22you%22%7D";

fn request(web: &Web, method: Method, target: &str) -> http::request::Builder {
    Request::builder().method(method).uri(format!("http://{}{target}", web.address))
}

async fn get(web: &Web, target: &str) -> Told {
    let request = request(web, Method::GET, target).body(Full::default());
    web.send(request.expect("a request")).await
}

#[tokio::test]
async fn unary_methods_without_side_effects_are_called_by_get() {
    let web = Web::start().await;
    let asked = said("you");
    for query in [
        format!("?connect=v1&encoding=proto&base64=1&message={}", URL_SAFE_NO_PAD.encode(&asked)),
        format!("?encoding=proto&message={}&base64=1", URL_SAFE.encode(&asked).replace('=', "%3D")),
        "?encoding=proto&message=%0a%03you&seen=before".to_owned(),
    ] {
        let told = get(&web, &format!("{UNARY}{query}")).await;
        assert_eq!((told.status, &told.body[..]), (200, &said("hello you")[..]), "{query}");
        assert_eq!(told.headers["content-type"], "application/proto");
    }
    let asked = request(&web, Method::GET, &format!("{UNARY}{JSON}"))
        .header("x-text", "a")
        .header("connect-timeout-ms", "5000");
    let told = web.send(asked.body(Full::default()).expect("a request")).await;
    assert_eq!((told.status, told.json()), (200, json!({ "text": "hello you" })));
    assert_eq!(told.headers["x-text"], "a");
    assert_eq!(told.headers["vary"], "accept-encoding, origin");
    assert_eq!(told.headers["x-content-type-options"], "nosniff");
    let head = web.mesh.last_head();
    assert!(head.deadline.is_some());
    assert_eq!(head.metadata["content-type"], "application/grpc+proto");
}

#[tokio::test]
async fn head_answers_as_get_does_without_the_body() {
    let web = Web::start().await;
    let target = format!("{UNARY}{JSON}");
    let length = get(&web, &target).await.body.len().to_string();
    let calls = web.calls();
    for http2 in [false, true] {
        let client: Client<_, Full<Bytes>> =
            Client::builder(TokioExecutor::new()).http2_only(http2).build_http();
        let asked = request(&web, Method::HEAD, &target).body(Full::default());
        let (parts, body) =
            client.request(asked.expect("a request")).await.expect("an answer").into_parts();
        assert_eq!(parts.status, 200, "HTTP/2: {http2}");
        assert_eq!(parts.headers["content-type"], "application/json");
        assert_eq!(parts.headers["content-length"], length.as_str());
        assert!(body.collect().await.expect("an end").to_bytes().is_empty());
    }
    assert_eq!(web.calls(), calls + 2);
}

#[tokio::test]
async fn errors_of_the_plugin_are_told_as_by_post() {
    let web = Web::start().await;
    let told = get(&web, "/demo.v1.Echo/Refuse?encoding=json&message={}").await;
    assert_eq!((told.status, &told.json()["code"]), (400, &json!("failed_precondition")));
    let told = get(&web, "/no.such.Service/Do?encoding=json&message={}").await;
    assert_eq!((told.status, &told.json()["code"]), (503, &json!("unavailable")));
    let told = get(&web, "/demo.v1.Echo/None?encoding=json&message={}").await;
    assert_eq!((told.status, &told.json()["code"]), (501, &json!("unimplemented")));
    let told = get(&web, "/nothing?encoding=json&message={}").await;
    assert_eq!((told.status, &told.json()["code"]), (501, &json!("unimplemented")));
}

#[tokio::test]
async fn methods_that_may_do_something_or_stream_are_not_called_by_get() {
    let web = Web::start().await;
    for method in ["Hang", "Join", "Words", "Chat"] {
        for encoding in ["json", "proto"] {
            let target = format!("/demo.v1.Echo/{method}?encoding={encoding}&message=");
            for asked in [Method::GET, Method::HEAD] {
                let asked = request(&web, asked, &target).body(Full::default());
                let told = web.send(asked.expect("a request")).await;
                assert_eq!((told.status, &told.headers["allow"]), (405, &"POST".parse().unwrap()));
            }
            assert_eq!(get(&web, &target).await.json()["code"], "unimplemented");
        }
    }
    assert_eq!(web.calls(), 0);
}

#[tokio::test]
async fn what_is_wrong_in_a_url_is_told_in_connects_words() {
    let web = Web::start().await;
    let long = format!("?encoding=json&message={}", "a".repeat(40_000));
    let many = format!("?encoding=json&message={{}}{}", "&a=1".repeat(200));
    for (query, status, code) in [
        ("?encoding=xml&message={}", 415, "unimplemented"),
        ("?message={}", 415, "unimplemented"),
        ("?encoding=json", 400, "invalid_argument"),
        ("?encoding=json&message={}&connect=v2", 400, "invalid_argument"),
        ("?encoding=json&message={}&message={}", 400, "invalid_argument"),
        ("?encoding=json&message=%7", 400, "invalid_argument"),
        ("?encoding=json&message=nonsense", 400, "invalid_argument"),
        ("?encoding=json&message=", 400, "invalid_argument"),
        ("?encoding=proto&base64=1&message=CgN5+3U", 400, "invalid_argument"),
        ("?encoding=proto&base64=1&message=CgN5b3U%3D%3D%3D", 400, "invalid_argument"),
        ("?encoding=json&compression=gzip&message={}", 501, "unimplemented"),
        ("?encoding=proto&compression=no%0asuch&message=a", 501, "unimplemented"),
        ("?encoding=proto&compression=gzip&message=a", 501, "unimplemented"),
        (&many, 400, "invalid_argument"),
        (&long, 414, "resource_exhausted"),
    ] {
        let told = get(&web, &format!("{UNARY}{query}")).await;
        assert_eq!(
            (told.status, &told.json()["code"]),
            (status, &json!(code)),
            "{query}: {}",
            told.json()
        );
        assert_eq!(told.headers["content-type"], "application/json");
    }
    // What nobody asked to be a call is none.
    assert_eq!(get(&web, UNARY).await.status, 404);
    web.still_serves().await;
}

#[tokio::test]
async fn pages_of_strangers_get_nothing_by_get_whether_they_tell_their_origin_or_not() {
    let mut origins = Origins::default();
    origins.allow("http://app.example").expect("an origin");
    let web = Web::start_with(Mesh::new(), origins).await;
    let target = format!("{UNARY}{JSON}");
    for (name, value, status) in [
        ("origin", "http://other.example", 403),
        ("origin", "null", 403),
        ("host", "rebound.example", 403),
        ("sec-fetch-site", "cross-site", 403),
        ("sec-fetch-site", "none", 200),
        ("host", "app.example", 200),
        ("origin", "http://app.example", 200),
    ] {
        let calls = web.calls();
        let asked = request(&web, Method::GET, &target).header(name, value);
        let told = web.send(asked.body(Full::default()).expect("a request")).await;
        assert_eq!(told.status, status, "{name}: {value}");
        assert_eq!(web.calls() - calls, usize::from(status == 200), "{name}: {value}");
        let allowed = told.headers.get("access-control-allow-origin").is_some();
        assert_eq!(allowed, (name, status) == ("origin", 200), "{name}: {value}");
    }
}
