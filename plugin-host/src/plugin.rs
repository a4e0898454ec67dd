//! The supervisor of one instance of a plugin: start, ready, watch, start again, drain, end.
//!
//! One task per instance, owned by the host. It alone moves the instance's state; everybody else
//! reads a copy. What it is told from outside comes as an [`Order`]; that it shall end, as the
//! cancellation of `stop`, which wins over every order.

mod begin;
mod files;
mod meet;
mod start;
mod tell;
mod watch;

use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use protocol::{id::InstanceId, manifest::Restart};
use tokio::{
    runtime::Handle,
    sync::{Semaphore, broadcast, mpsc, oneshot, watch as watching},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use crate::{
    allowance::Allowance,
    channel::{Channel, Channels},
    config::HostConfig,
    egress::Lookups,
    level::{self, Guests},
    lifecycle::{State, Step},
    logs::{self, Floods, Logs},
    permissions::Access,
    plan::Paths,
    restart::{Restarts, Verdict},
    roll::Roll,
    seat::Seat,
    siblings::{Ended, Group},
    source::Program,
    spawner::Spawner,
    status::{HostEvent, MeshDoor, PluginStatus, Transition},
    stillness::Stillness,
    tls::Authority,
    turns::{Turns, Work},
};

use files::Place;
pub(crate) use files::private_directory;
use start::NotStarted;
use watch::Watched;

/// Log lines shown with a start that failed.
pub(crate) const TAIL_LINES: usize = 12;

/// Orders that may wait for a supervisor: its group's and its operator's, a few at most, for
/// whoever gives one waits for what comes of it.
pub(crate) const ORDERS: usize = 8;

/// What a supervisor works with.
pub(crate) struct Context {
    pub(crate) config: Arc<HostConfig>,
    pub(crate) program: Arc<Program>,
    pub(crate) seat: Seat,
    /// What it may use.
    pub(crate) allowance: Allowance,
    pub(crate) spawner: Spawner,
    pub(crate) guests: Arc<Guests>,
    pub(crate) channels: Arc<Channels>,
    pub(crate) door: Arc<dyn MeshDoor>,
    pub(crate) events: mpsc::Sender<HostEvent>,
    pub(crate) transitions: broadcast::Sender<Transition>,
    pub(crate) logs: Logs,
    /// The host's, for whoever says too much.
    pub(crate) floods: Floods,
    pub(crate) turns: Turns,
    /// Where calls are carried, which is not where supervisors run.
    pub(crate) carriers: Handle,
    /// What it may do.
    pub(crate) access: Arc<Access>,
    /// The host's, for those that listen with TLS.
    pub(crate) authority: Arc<Authority>,
    /// The host's, for the egress proxy.
    pub(crate) lookups: Lookups,
    pub(crate) status: Arc<Mutex<PluginStatus>>,
    pub(crate) phase: watching::Sender<Phase>,
    /// Since when the run that answers now is ready.
    pub(crate) ready_since: Arc<Mutex<Option<Instant>>>,
    /// Set when the plugin is to be drained and ended.
    pub(crate) stop: CancellationToken,
    /// Jails that may be built at once.
    pub(crate) starts: Arc<Semaphore>,
    /// When the host began; all rounds of all plugins are counted from here.
    pub(crate) epoch: Instant,
    pub(crate) roll: Arc<Roll>,
    /// Who decides about its restarts, if it is not alone.
    pub(crate) group: Option<Arc<Group>>,
    /// Its part of the node's configuration, as it is now.
    pub(crate) part: watching::Receiver<Option<Arc<serde_json::Value>>>,
    /// Its own policy, complete.
    pub(crate) restart: Restart,
    /// It was loaded before and ran: then a failed start is a crash, not a mistake of whoever
    /// loads it.
    pub(crate) proven: bool,
}

/// Told once: it became ready, or will not.
pub(crate) type FirstStart = oneshot::Sender<Result<(), String>>;

/// How far a supervisor is, for those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Phase {
    pub(crate) state: State,
    /// Starts begun so far.
    pub(crate) attempt: u64,
    /// The last of them that is over; below `attempt` while there is, or may be, a process.
    pub(crate) over: u64,
}

impl Phase {
    pub(crate) const FIRST: Self = Self { state: State::Discovered, attempt: 0, over: 0 };
}

/// What a supervisor is told to do.
#[derive(Debug, Clone)]
pub(crate) enum Order {
    /// End the present run, if there is one, and start again after a while.
    Start {
        /// How long after.
        delay: Duration,
        /// Who wants it and why.
        why: String,
    },
    /// End the present run, if there is one, and wait for another order.
    Hold(String),
    /// End the present run, if there is one, and start no more: a crash loop.
    GiveUp(String),
}

impl Order {
    fn why(&self) -> &str {
        match self {
            Self::Start { why, .. } | Self::Hold(why) | Self::GiveUp(why) => why,
        }
    }
}

/// A run that is ready.
struct Run {
    process: level::Run,
    channel: Arc<Channel>,
    instance: InstanceId,
    since: Instant,
    probed: bool,
    /// It has the `Lifecycle` contract.
    contract: bool,
    /// The part of the configuration that it was handed.
    part: Option<Arc<serde_json::Value>>,
    /// Whether it did anything since it was asked; held from the look to the answer, so that the
    /// question of one is not taken for its own doing by another.
    stillness: tokio::sync::Mutex<Stillness>,
    captures: Captures,
    /// Its way out of the jail's network; ends with the run.
    _egress: Option<AbortOnDropHandle<()>>,
}

/// Reads the output of a process until it ends, and a moment longer.
struct Captures(Vec<AbortOnDropHandle<()>>);

impl Captures {
    async fn finish(self) {
        let all = futures::future::join_all(self.0);
        let _ = timeout(logs::LAST_WORDS, all).await;
    }
}

/// What a supervisor does next.
enum Next {
    Start(Duration),
    Hold,
    Over,
}

/// Supervises until the instance is stopped or has failed. Nothing of it is left afterwards.
pub(crate) async fn supervise(context: Context, orders: mpsc::Receiver<Order>, first: FirstStart) {
    let place = Place {
        paths: Paths::new(&context.config, &context.seat.key()),
        config: Arc::clone(&context.config),
        program: Arc::clone(&context.program),
        seat: context.seat.clone(),
        access: Arc::clone(&context.access),
        authority: Arc::clone(&context.authority),
    };
    let supervisor = Supervisor {
        restarts: Restarts::new(context.restart.clone()),
        place,
        born: Instant::now(),
        first: Some(first),
        context,
    };
    supervisor.run(orders).await;
}

struct Supervisor {
    context: Context,
    restarts: Restarts,
    place: Place,
    born: Instant,
    first: Option<FirstStart>,
}

/// The next order. Pending for ever once nobody can give one: then `stop` ends the supervisor.
async fn told(orders: &mut mpsc::Receiver<Order>) -> Order {
    match orders.recv().await {
        Some(order) => order,
        None => std::future::pending().await,
    }
}

impl Supervisor {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        self.step(Step::Validated, "");
        let door = match self.open_door().await {
            Ok(door) => door,
            Err(error) => {
                self.give_up(Step::GaveUp, &format!("its mesh socket cannot be made: {error}"));
                self.remove_files().await;
                return;
            }
        };
        let mut next = self.wait_for_needs(&mut orders).await;
        loop {
            next = match next {
                Next::Start(delay) if delay.is_zero() => {
                    let next = self.one_run(&mut orders).await;
                    self.end_limits().await;
                    next
                }
                Next::Start(delay) => self.pause(delay, &mut orders).await,
                Next::Hold => self.hold(&mut orders).await,
                Next::Over => break,
            };
        }
        drop(door);
        self.remove_files().await;
    }

    async fn open_door(&self) -> std::io::Result<Box<dyn Send>> {
        let (place, door) = (self.place.clone(), Arc::clone(&self.context.door));
        // What comes through the door are calls.
        let carriers = &self.context.carriers;
        let opened = carriers.spawn_blocking(move || place.open_door(&*door)).await;
        opened.map_err(std::io::Error::other)?
    }

    async fn remove_files(&self) {
        let place = self.place.clone();
        // Joined, so that nothing of it is left. It does not panic.
        let _ = tokio::task::spawn_blocking(move || place.remove()).await;
    }

    /// Removes the control group of the run that is over, with whatever is left in it.
    async fn end_limits(&self) {
        let allowance = self.context.allowance.clone();
        // Joined, so that nothing of the run is left when the next begins. It does not panic.
        let _ = self.context.turns.work(Work::EndGroups, move || allowance.end()).await;
    }

    /// Waits until all it depends on is ready: as long as it takes where it is known to work, and
    /// as long as a start may take where somebody waits for the answer. An order ends the wait: who
    /// gives it knows what is missing.
    async fn wait_for_needs(&mut self, orders: &mut mpsc::Receiver<Order>) -> Next {
        let limit = self.start_timeout();
        let deadline = (!self.context.proven).then(|| Instant::now() + limit);
        let program = Arc::clone(&self.context.program);
        let stop = self.context.stop.clone();
        for need in &program.manifest.dependencies {
            let name = need.name.as_str();
            let mut presence = self.context.roll.watch(name);
            self.explain(&format!("waits for {name} to be ready"));
            let there = presence.wait_for(|it| {
                it.ready > 0 && it.version.as_ref().is_some_and(|have| need.version.matches(have))
            });
            let late = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = stop.cancelled() => return self.stopped("unloaded before it was ready"),
                order = told(orders) => return self.obey(order),
                _ = there => {}
                () = late => {
                    let text = format!("dependencies: {name} was not ready after {limit:?}");
                    self.give_up(Step::GaveUp, &text);
                    return Next::Over;
                }
            }
        }
        self.explain("");
        Next::Start(Duration::ZERO)
    }

    /// One run, from start to end.
    async fn one_run(&mut self, orders: &mut mpsc::Receiver<Order>) -> Next {
        let stop = self.context.stop.clone();
        self.context.phase.send_modify(|phase| phase.attempt += 1);
        let started = tokio::select! {
            biased;
            () = stop.cancelled() => return self.stopped("unloaded before it was ready"),
            order = told(orders) => return self.obey(order),
            started = self.start() => started,
        };
        match started {
            Ok(run) => {
                let since = run.since;
                match self.watch(run, orders).await {
                    Watched::Stopped => self.stopped("unloaded"),
                    Watched::Ordered(order) => self.obey(order),
                    Watched::Ended { clean, reason } => {
                        self.again(clean, Some(since.elapsed()), &reason).await
                    }
                }
            }
            Err(NotStarted { reason, retry }) if self.context.proven && retry => {
                self.again(false, None, &reason).await
            }
            // Whoever loads it wants to know, not to wait for five more of the same; and what was
            // refused would be refused again.
            Err(NotStarted { reason, .. }) => {
                self.give_up(Step::GaveUp, &reason);
                Next::Over
            }
        }
    }

    /// After an end that nobody asked for: wait and start again, or not.
    async fn again(&mut self, clean: bool, uptime: Option<Duration>, reason: &str) -> Next {
        if !clean {
            self.context.status.lock().crashes += 1;
        }
        if self.restarts.leaves(clean) {
            self.step(if clean { Step::Ended } else { Step::GaveUp }, reason);
            self.warn(&format!("{reason}; its restart policy leaves it so"));
            self.tell_first(Err(reason.into()));
            return Next::Over;
        }
        if let Some(group) = self.context.group.clone() {
            let text = format!("{reason}; its group {} decides", group.name());
            self.step(Step::Crashed, &text);
            self.warn(&format!(
                "{text}; the node and plugins of no or other groups are unaffected"
            ));
            let phase = *self.context.phase.borrow();
            let ended = Ended {
                key: self.context.seat.key(),
                attempt: phase.attempt,
                uptime,
                reason: reason.into(),
            };
            let stop = self.context.stop.clone();
            tokio::select! {
                () = stop.cancelled() => {}
                () = group.ended(ended) => {}
            }
            return Next::Hold;
        }
        let now = self.born.elapsed().as_millis() as u64;
        match self.restarts.after_end(clean, uptime, now, rand::random::<f64>()) {
            Verdict::Again(delay) => {
                let wait = format!("{reason}; starting again in {:.1} s", delay.as_secs_f64());
                self.step(Step::Crashed, &wait);
                self.warn(&format!("{wait}; the node and its other plugins are unaffected"));
                Next::Start(delay)
            }
            // Judged above already.
            Verdict::Leave => Next::Over,
            Verdict::GiveUp { restarts, window } => {
                let text = format!(
                    "crash loop: {reason}; it was started again {restarts} times within {} s and \
                     is given up; load or restart it once the cause is mended",
                    window.as_secs()
                );
                self.give_up(Step::Looped, &text);
                Next::Over
            }
        }
    }

    /// The wait before another start.
    async fn pause(&mut self, delay: Duration, orders: &mut mpsc::Receiver<Order>) -> Next {
        let stop = self.context.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => return self.stopped("unloaded"),
            order = told(orders) => return self.obey(order),
            () = sleep(delay) => {}
        }
        self.count_restart();
        Next::Start(Duration::ZERO)
    }

    async fn hold(&mut self, orders: &mut mpsc::Receiver<Order>) -> Next {
        let stop = self.context.stop.clone();
        tokio::select! {
            biased;
            () = stop.cancelled() => self.stopped("unloaded"),
            order = told(orders) => self.obey(order),
        }
    }

    /// Does what it is told; there is no process any more.
    fn obey(&mut self, order: Order) -> Next {
        self.forget_run();
        if let Order::GiveUp(why) = order {
            self.give_up(Step::Looped, &why);
            return Next::Over;
        }
        if self.state() == State::Loaded {
            self.explain(order.why());
            self.context.phase.send_modify(|phase| phase.over = phase.attempt);
        } else {
            self.step(Step::Recalled, order.why());
        }
        self.context.logs.supervisor("info", 0, order.why());
        match order {
            Order::Start { delay, .. } if delay.is_zero() => {
                self.count_restart();
                Next::Start(delay)
            }
            Order::Start { delay, .. } => Next::Start(delay),
            Order::Hold(_) | Order::GiveUp(_) => Next::Hold,
        }
    }

    /// It ends because it was asked to.
    fn stopped(&mut self, why: &str) -> Next {
        self.forget_run();
        if self.state() != State::Draining {
            self.step(Step::Drain, why);
        }
        self.step(Step::Ended, why);
        self.tell_first(Err("it was unloaded before it was ready".into()));
        Next::Over
    }

    fn count_restart(&self) {
        let mut status = self.context.status.lock();
        status.restarts += 1;
        status.last_restart = Some(SystemTime::now());
    }
}
