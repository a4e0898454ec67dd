//! One group of plugins: performs on real supervisors what [`crate::group`] decides.
//!
//! A member that ended, and whose own policy wants it started again, reports here and waits. The
//! group counts all restarts of all its members together: more than its window allows, and the
//! whole group is given up.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::GroupConfig,
    group::{Action, Strategy, after_end},
    lifecycle::State,
    plugin::{Order, Phase},
    restart::{Restarts, Verdict},
};

/// Ends that may wait to be judged: every member can have one. A group that is further behind
/// holds its members up, who wait for it anyway.
const ENDS: usize = 64;

/// The end of a member, told by its supervisor.
pub(crate) struct Ended {
    /// The member's [`crate::seat::Seat::key`].
    pub(crate) key: String,
    /// Which start it was that ended.
    pub(crate) attempt: u64,
    /// How long it was ready; `None` where it never was.
    pub(crate) uptime: Option<Duration>,
    pub(crate) reason: String,
}

/// A supervisor as its group sees it.
#[derive(Clone)]
pub(crate) struct Member {
    /// The plugin, by which the configuration gives its place.
    pub(crate) plugin: String,
    pub(crate) key: String,
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) phase: watch::Receiver<Phase>,
}

/// One group. Its members come and go.
pub(crate) struct Group {
    name: String,
    config: GroupConfig,
    /// In start order.
    members: Mutex<Vec<Member>>,
    ends: mpsc::Sender<Ended>,
}

impl Group {
    /// An empty group, and the task that works for it until `closing`.
    pub(crate) fn new(
        name: &str,
        config: GroupConfig,
        closing: CancellationToken,
    ) -> (Arc<Self>, impl Future<Output = ()> + use<>) {
        let (ends, told) = mpsc::channel(ENDS);
        let group =
            Arc::new(Self { name: name.into(), config, members: Mutex::new(Vec::new()), ends });
        let work = Arc::clone(&group).work(told);
        let task = async move {
            tokio::select! {
                () = closing.cancelled() => {}
                () = work => {}
            }
        };
        (group, task)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn strategy(&self) -> Strategy {
        self.config.strategy
    }

    /// Takes a member in: those the configuration names in its order, then all others in the
    /// order in which they came.
    pub(crate) fn join(&self, member: Member) {
        let place = |plugin: &str| {
            let named = self.config.members.iter().position(|name| name == plugin);
            named.unwrap_or(usize::MAX)
        };
        let mut members = self.members.lock();
        members.retain(|other| other.key != member.key);
        members.push(member);
        // Stable: those alike stay in the order of their coming.
        members.sort_by_key(|member| place(&member.plugin));
    }

    /// Lets a member go, if it is still the one with these `orders`.
    pub(crate) fn leave(&self, orders: &mpsc::Sender<Order>) {
        self.members.lock().retain(|member| !member.orders.same_channel(orders));
    }

    /// Reports the end of a member, which then waits for an order.
    pub(crate) async fn ended(&self, ended: Ended) {
        // The group is gone only when the host is closing.
        let _ = self.ends.send(ended).await;
    }

    async fn work(self: Arc<Self>, mut told: mpsc::Receiver<Ended>) {
        let born = Instant::now();
        let mut restarts = Restarts::new(self.config.restart.clone());
        while let Some(ended) = told.recv().await {
            let members = self.members.lock().clone();
            let Some(who) = members.iter().position(|member| member.key == ended.key) else {
                continue;
            };
            // It was started again meanwhile, for the end of another.
            if members[who].phase.borrow().attempt != ended.attempt {
                continue;
            }
            let now = born.elapsed().as_millis() as u64;
            let chance = rand::random::<f64>();
            match restarts.after_end(false, ended.uptime, now, chance) {
                Verdict::Again(delay) => self.restart(&members, who, delay, &ended).await,
                Verdict::Leave => {}
                Verdict::GiveUp { restarts, window } => {
                    let text = format!(
                        "crash loop: group {}: {}: {}; members were started again {restarts} \
                         times within {} s, and the whole group is given up; restart its members \
                         once the cause is mended",
                        self.name,
                        ended.key,
                        ended.reason,
                        window.as_secs()
                    );
                    tracing::error!(group = %self.name, "{text}");
                    for member in members.iter().rev() {
                        order(member, Order::GiveUp(text.clone())).await;
                    }
                }
            }
        }
    }

    async fn restart(&self, members: &[Member], who: usize, delay: Duration, ended: &Ended) {
        let places: Vec<usize> = (0..members.len()).collect();
        let strategy = self.config.strategy;
        let why = format!("group {}, {}: {} ended", self.name, strategy.as_str(), ended.key);
        tracing::warn!(group = %self.name, member = %ended.key, ?delay, "{why}: starting again");
        if strategy == Strategy::OneForOne {
            // Nobody else is touched, so nobody else need wait.
            order(&members[who], Order::Start { delay, why }).await;
            return;
        }
        let actions = after_end(strategy, &places, who);
        let mut waited = false;
        for (step, action) in actions.iter().enumerate() {
            match *action {
                Action::Stop(place) => {
                    order(&members[place], Order::Hold(why.clone())).await;
                    down(&members[place]).await;
                }
                Action::Start(place) => {
                    if !std::mem::replace(&mut waited, true) {
                        sleep(delay).await;
                    }
                    match start(&members[place], &why).await {
                        Started::Ready => {}
                        // Its own end is reported, too, and begins this anew.
                        Started::Ended => return,
                        Started::Over => {
                            let key = &members[place].key;
                            let text = format!("group {}: {key} is there no more", self.name);
                            give_up_rest(&actions[step + 1..], members, &text).await;
                            return;
                        }
                    }
                }
            }
        }
    }
}

/// What became of a start.
enum Started {
    Ready,
    /// It ended and reports that itself.
    Ended,
    /// It was stopped, or has failed for good.
    Over,
}

/// A supervisor that has ended takes no orders, which is right.
async fn order(member: &Member, order: Order) {
    let _ = member.orders.send(order).await;
}

/// Waits until the member has no process. Bounded by its grace.
async fn down(member: &Member) {
    let mut phase = member.phase.clone();
    let _ = phase.wait_for(|phase| phase.over == phase.attempt || !phase.state.is_alive()).await;
}

/// Starts a member that is held. Bounded by its start deadline.
async fn start(member: &Member, why: &str) -> Started {
    let mut phase = member.phase.clone();
    let before = phase.borrow().attempt;
    order(member, Order::Start { delay: Duration::ZERO, why: why.into() }).await;
    let settled = phase.wait_for(|phase| {
        let begun = phase.attempt > before;
        let done = phase.state == State::Running || phase.over == phase.attempt;
        (begun && done) || !phase.state.is_alive()
    });
    match settled.await.map(|phase| phase.state) {
        Ok(State::Running) => Started::Ready,
        Ok(state) if state.is_alive() => Started::Ended,
        _ => Started::Over,
    }
}

/// Without the one before them the rest cannot be whole; held for ever they would look alive.
async fn give_up_rest(rest: &[Action<usize>], members: &[Member], why: &str) {
    for action in rest.iter().rev() {
        if let Action::Start(place) = action {
            order(&members[*place], Order::GiveUp(why.into())).await;
        }
    }
}
