//! `status`, `health`, `log level`, `stop`.

use std::{os::fd::OwnedFd, time::Duration};

use protocol::proto::admin::{
    HealthRequest, LogLevelRequest, PeersRequest, StatusRequest, StopRequest,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use serde_json::json;

use crate::{
    admin::{Node, answer},
    args::{Health, Level, Status, Stop},
    failed::{Exit, Failed},
    show,
    terminal::{Terminal, clean},
    units::span,
};

/// Shows the node's status.
pub async fn status(
    args: &Status,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let status = answer(node.admin().status(StatusRequest {})).await?;
    let peers = if args.detailed {
        Some(answer(node.admin().peers(PeersRequest {})).await?.peers)
    } else {
        None
    };
    if json {
        terminal.json(&show::node::status_document(&status, peers.as_deref()))?;
    } else {
        let text = show::node::status(&status, peers.as_deref(), terminal.colour);
        terminal.print(&text)?;
    }
    Ok(Exit::Ok)
}

/// Tells whether all is well: as last seen, or as probed now.
pub async fn health(
    args: &Health,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let report = if args.check_all {
        answer(node.admin().health(HealthRequest {})).await?
    } else {
        show::node::last_seen(&answer(node.admin().status(StatusRequest {})).await?)
    };
    if json {
        terminal.json(&show::node::health_document(&report))?;
    } else {
        let text = show::node::health(&report, terminal.colour);
        terminal.print(&text)?;
    }
    Ok(if report.healthy { Exit::Ok } else { Exit::Unhealthy })
}

/// Shows the level of the node's own log, or changes it.
pub async fn log_level(
    args: &Level,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    let request = LogLevelRequest { level: args.level.clone().unwrap_or_default() };
    let told = answer(node.admin().log_level(request)).await?;
    if json {
        terminal.json(&json!({"level": told.level, "before": told.before}))?;
    } else if told.level == told.before {
        terminal.print(&clean(&told.level))?;
    } else {
        let (level, before) = (clean(&told.level), clean(&told.before));
        terminal.print(&format!("{level} (was {before})"))?;
    }
    Ok(Exit::Ok)
}

/// Ends the node, and waits until its process is gone.
pub async fn stop(
    args: &Stop,
    node: &Node,
    terminal: &mut Terminal,
    json: bool,
) -> Result<Exit, Failed> {
    // Opened before it is told to stop, so that the id cannot have been given to another process.
    let process = if args.no_wait { None } else { node.pid.and_then(watch) };
    answer(node.admin().stop(StopRequest {})).await?;
    let stopped = match process {
        None => false,
        Some(process) => {
            terminal.progress("draining: waiting until the node is gone");
            gone(process, args.timeout).await?
        }
    };
    if json {
        terminal.json(&json!({"stopped": stopped, "pid": node.pid}))?;
    } else {
        terminal.print(if stopped { "stopped" } else { "stopping" })?;
    }
    Ok(Exit::Ok)
}

/// A handle on the node's process; `None` where the system gives none, and for this very process,
/// which cannot wait for its own end.
fn watch(pid: i32) -> Option<OwnedFd> {
    let own = rustix::process::getpid();
    let pid = Pid::from_raw(pid).filter(|pid| *pid != own)?;
    pidfd_open(pid, PidfdFlags::empty()).ok()
}

/// Waits until the process is gone, at most as long as `timeout`.
async fn gone(process: OwnedFd, timeout: Duration) -> Result<bool, Failed> {
    let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
    let limit = Timespec { tv_sec: seconds, tv_nsec: timeout.subsec_nanos().into() };
    // A handle becomes readable when its process ends. The thread ends with the wait.
    let waiting = tokio::task::spawn_blocking(move || {
        poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&limit))
    });
    let untold = |error: String| Failed::new(format!("the node's end cannot be awaited: {error}"));
    let ended = waiting.await.map_err(|error| untold(error.to_string()))?;
    if ended.map_err(|error| untold(error.to_string()))? > 0 {
        return Ok(true);
    }
    let waited = span(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX));
    Err(Failed::new(format!("the node is draining and not gone after {waited}"))
        .hint("wait longer with --timeout; `blackhole status` shows what it still does"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(seconds: &str) -> (std::process::Child, OwnedFd) {
        let child = std::process::Command::new("sleep").arg(seconds).spawn().expect("started");
        let pid = i32::try_from(child.id()).expect("a pid");
        (child, watch(pid).expect("a handle"))
    }

    #[tokio::test]
    async fn the_end_of_a_process_is_noticed() {
        let (mut child, handle) = process("60");
        child.kill().expect("killed");
        assert_eq!(gone(handle, Duration::from_secs(30)).await, Ok(true));
        child.wait().expect("reaped");
    }

    #[tokio::test]
    async fn a_process_that_stays_is_told_of_when_the_time_is_over() {
        let (mut child, handle) = process("60");
        let failed = gone(handle, Duration::from_millis(20)).await.expect_err("it stays");
        assert_eq!(failed.message, "the node is draining and not gone after 20ms");
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }

    #[test]
    fn nobody_waits_for_its_own_end() {
        assert!(watch(rustix::process::getpid().as_raw_nonzero().get()).is_none());
    }
}
