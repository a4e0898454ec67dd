//! `explain`: who would answer a call now, or with `--call` what happens to one that is made.

use std::time::Duration;

use protocol::{
    proto::admin::{ExplainRequest, TraceRequest},
    service::MethodPath,
};
use serde_json::Value;
use tonic::{Code, Status};

use super::mesh;
use crate::{
    admin::{Node, answer, answer_within},
    args::Explain,
    failed::{Exit, Failed, code_name},
    schema, show,
    terminal::Terminal,
};

/// How long the call may take where nothing is said.
const CALL_MAX: Duration = Duration::from_secs(10);

/// Says what would be chosen, or what happened.
pub async fn run(
    args: &Explain,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let service = &args.target.service;
    let locality = match mesh::peer(&args.whither, service, node).await? {
        Some(peer) => format!("peer={peer}"),
        None => args.whither.locality().unwrap_or_default().to_owned(),
    };
    if args.call {
        let Some(method) = &args.target.method else {
            let message = format!("--call needs a method, such as {service}/Add");
            let hint = format!("`blackhole describe {service}` lists its methods");
            return Err(Failed::usage(message).hint(hint));
        };
        return call(args, method, locality, node, terminal, json).await;
    }
    let request = ExplainRequest { service: service.to_string(), locality };
    let found = answer(node.admin().explain(request)).await?;
    if json {
        terminal.json(&show::mesh::explain_document(service.as_str(), &found))?;
    } else {
        let text = show::mesh::explain(&found, terminal.colour);
        terminal.print(&text)?;
    }
    Ok(Exit::Ok)
}

/// Makes the call. That it failed is exit code 1, and is printed like any other end.
async fn call(
    args: &Explain,
    path: &MethodPath,
    locality: String,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let service = path.service();
    let (schema, _) = mesh::interface(&service, node).await?;
    let found = schema.method(path);
    let method = found.map_err(|error| mesh::undescribed(&error, &service))?;
    let message = match args.data.as_deref() {
        None => bytes::Bytes::new(),
        Some(text) => {
            let value: Value = serde_json::from_str(text)
                .map_err(|error| Failed::usage(format!("the request is not JSON: {error}")))?;
            schema::encode(&method.input(), value)
                .map_err(|error| Failed::usage(error.to_string()))?
        }
    };
    let timeout = args.timeout.unwrap_or(CALL_MAX);
    let request = TraceRequest {
        method: path.as_str().to_owned(),
        message,
        locality,
        timeout_ms: u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX),
        metadata: args.headers.iter().cloned().collect(),
    };
    let traced = answer_within(node.admin().trace(request), timeout).await?;
    if json {
        terminal.json(&show::trace::document(path.as_str(), &traced))?;
    } else {
        terminal.print(&show::trace::text(&traced, terminal.colour))?;
    }
    if traced.code == 0 {
        return Ok(Exit::Ok);
    }
    let status = Status::new(Code::from(traced.code as i32), traced.message);
    let code = code_name(status.code());
    let mut failed = Failed::new(format!("the call ended with {code}: {}", status.message()));
    failed.code = Some(code);
    Err(failed)
}
