//! Answers that may be given again, kept near their caller for as long as the plugin says.
//!
//! A plugin says it twice: the descriptors of its method say that one message asks, one answers and
//! nothing changes (`idempotency_level = NO_SIDE_EFFECTS`), and each answer says for how long it
//! holds, by `cache-control: max-age=…` in its metadata. From then on the node where such a call
//! enters the mesh reads its question first, and answers it itself while it holds an answer to the
//! same question of the same caller. Calls of other methods pass without a look at their bytes.
//!
//! Owns what is kept and its bounds. Refuses to give one caller what another one was told, to keep
//! what did not end well, and to answer other peers: the cache is the caller's node's.
//!
//! Source: RFC 9111, for what `cache-control` and `age` mean.

mod fresh;
mod keep;
mod question;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures::stream;
use http::{
    HeaderMap, HeaderValue,
    header::{AGE, CACHE_CONTROL},
};
use http_body::Frame;
use http_body_util::StreamBody;
use moka::policy::EvictionPolicy;
use protocol::{
    failure::{Failure, Ran},
    ports::{Body, Call, Reply},
    service::MethodPath,
};

use self::{
    fresh::{Word, lifetime},
    keep::Keeping,
    question::{Key, Question},
};
use crate::{
    attempt::Answered,
    carry::Carriage,
    guard::{Progress, Watchdog},
    router::Shared,
    trace::{Event, Trace},
};

/// All that one node keeps: answers, their questions, and what holding them costs.
const KEPT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What an entry costs beside its bytes, about: the maps of its metadata and the cache's own nodes.
const ENTRY_BYTES: usize = 512;

/// The longest that an answer is kept, whatever its plugin says.
const LIFETIME_MAX: Duration = Duration::from_hours(1);

/// Methods of which it is known whether their answers may be kept.
const METHODS_MAX: usize = 1_024;

/// How long that is believed: a plugin may be replaced by one that says otherwise.
const BELIEVED: Duration = Duration::from_mins(1);

/// What one router keeps.
pub(crate) struct Cache {
    answers: moka::sync::Cache<Key, Arc<Kept>>,
    /// Those whose answers have spoken of caching. Every call looks, so a look takes no lock.
    methods: ArcSwap<HashMap<MethodPath, Judged>>,
}

/// Whether a method's answers may be kept, and until when that is believed, on the router's clock.
#[derive(Debug, Clone, Copy)]
struct Judged {
    cacheable: bool,
    until: u64,
}

/// One answer.
#[derive(Debug)]
struct Kept {
    metadata: HeaderMap,
    message: Bytes,
    trailers: HeaderMap,
    /// On the router's clock.
    since: u64,
    until: u64,
}

/// What became of a call that may have been answered before.
pub(crate) enum Recalled {
    /// The answer that was kept.
    Answer(Reply),
    /// The call goes on, and where there is a key its answer may be kept under it.
    Call(Box<Call>, Option<Key>),
}

impl Cache {
    pub(crate) fn new() -> Self {
        let weigh = |key: &Key, kept: &Arc<Kept>| {
            let bytes = key.len() + kept.bytes() + ENTRY_BYTES;
            u32::try_from(bytes).unwrap_or(u32::MAX)
        };
        let answers = moka::sync::Cache::builder()
            .max_capacity(KEPT_BYTES_MAX)
            .weigher(weigh)
            .time_to_live(LIFETIME_MAX)
            // What was just answered is what is asked next, however seldom it was before.
            .eviction_policy(EvictionPolicy::lru())
            .build();
        Self { answers, methods: ArcSwap::default() }
    }

    /// Whether an answer of this method may be here.
    pub(crate) fn may_hold(&self, path: &MethodPath) -> bool {
        let methods = self.methods.load();
        !methods.is_empty() && methods.get(path).is_some_and(|judged| judged.cacheable)
    }

    fn is_judged(&self, path: &MethodPath, now: u64) -> bool {
        self.methods.load().get(path).is_some_and(|judged| judged.until > now)
    }

    fn judge(&self, path: &MethodPath, cacheable: bool, now: u64) {
        let judged = Judged { cacheable, until: now + BELIEVED.as_micros() as u64 };
        self.methods.rcu(|known| {
            let mut methods = HashMap::clone(known);
            if methods.len() >= METHODS_MAX {
                methods.clear();
            }
            methods.insert(path.clone(), judged);
            methods
        });
    }

    /// The answer to `key`, while it holds.
    fn recall(&self, key: &Key, now: u64) -> Option<Arc<Kept>> {
        let kept = self.answers.get(key)?;
        if kept.until > now {
            return Some(kept);
        }
        self.answers.invalidate(key);
        None
    }
}

impl Kept {
    fn bytes(&self) -> usize {
        let maps = self.metadata.iter().chain(&self.trailers);
        let maps: usize = maps.map(|(name, value)| name.as_str().len() + value.len()).sum();
        self.message.len() + maps
    }

    /// As it is given again at `now`, with its age in whole seconds.
    fn reply(&self, now: u64) -> Reply {
        let mut metadata = self.metadata.clone();
        metadata.insert(AGE, HeaderValue::from(self.age(now).as_secs()));
        let frames = [Frame::data(self.message.clone()), Frame::trailers(self.trailers.clone())];
        Reply { metadata, body: Body::new(StreamBody::new(stream::iter(frames.map(Ok)))) }
    }

    fn age(&self, now: u64) -> Duration {
        Duration::from_micros(now.saturating_sub(self.since))
    }
}

/// Answers `call` from the cache of `shared`, or reads its question so that its answer can be kept.
/// Fails where the question does not come in time.
pub(crate) async fn recall(
    shared: &Arc<Shared>,
    call: Call,
    began: Instant,
    trace: Option<&Trace>,
) -> Result<Recalled, Failure> {
    let Call { head, body } = call;
    let word = Word::of(&head.metadata);
    if word.no_store {
        return Ok(Recalled::Call(Box::new(Call { head, body }), None));
    }
    let meter = || shared.meters.begin(&head.path.service(), &head.caller, true, began);
    let mut watchdog = Watchdog::new(head.deadline, Progress::new(), shared.settings.idle);
    let question = watchdog.watch(Ran::NotStarted, Question::read(body)).await;
    let question = question.inspect_err(|failure| meter().failed(failure))?;
    let key = question.message().map(|message| question::key(&head, message));
    let now = shared.now();
    if let Some(key) = key.as_ref().filter(|_| !word.no_cache)
        && let Some(kept) = shared.cache.recall(key, now)
    {
        if let Some(trace) = trace {
            trace.add(Event::Recalled { age: kept.age(now) });
        }
        meter().recalled();
        return Ok(Recalled::Answer(kept.reply(now)));
    }
    Ok(Recalled::Call(Box::new(Call { head, body: Body::new(question) }), key))
}

impl Carriage {
    /// Keeps what `answered` brings under `key`, where it says that it holds for a while; where
    /// nothing is known of its method yet, finds out for the next call.
    pub(crate) async fn keep(&self, answered: Answered, key: Option<Key>) -> Answered {
        let metadata = &answered.reply.metadata;
        let Some(lifetime) = lifetime(metadata).filter(|_| self.policy.cache) else {
            return answered;
        };
        let (cache, path, now) = (&self.shared.cache, &self.head.path, self.shared.now());
        if !cache.is_judged(path, now) {
            let due = self.watchdog.within(self.shared.settings.describe);
            let asked = self.shared.ports.declared.of(path.clone(), due);
            let declared = tokio::time::timeout_at(due.into(), asked).await.unwrap_or_default();
            cache.judge(path, declared.cacheable, now);
        }
        let Some(key) = key.filter(|_| cache.may_hold(path)) else { return answered };
        let until = now + lifetime.min(LIFETIME_MAX).as_micros() as u64;
        let Reply { metadata, body } = answered.reply;
        let keeping = Keeping::new(body, Arc::clone(&self.shared), key, &metadata, now..until);
        Answered { reply: Reply { metadata, body: Body::new(keeping) }, ..answered }
    }
}

/// Whether an answer says anything of being kept. Most do not, and cost no more than this look.
pub(crate) fn speaks(metadata: &HeaderMap) -> bool {
    metadata.contains_key(CACHE_CONTROL)
}

#[cfg(test)]
mod tests;
