//! `misfit`: misbehaves when it is told to, for tests of everything that contains plugins.
//!
//! Tricks are arguments (`misfit crash-after=200 flood-logs`) or, where marked with `call`, also
//! asked for with `demo.v1.Misfit/Misbehave`. `=N` is their amount.
//!
//! | Trick | When | What happens |
//! |---|---|---|
//! | `crash-at-start` | start | aborts before it listens |
//! | `exit-at-start[=CODE]` | start | ends before it listens, with code 0 |
//! | `crash-after=MS` | start | aborts some time after it listens |
//! | `crash` | call | aborts while the caller waits |
//! | `exit[=CODE]` | call | ends while the caller waits |
//! | `panic` | call | panics in the method; the process lives |
//! | `hang` | call | this call is never answered; others are |
//! | `freeze` | start, call | nothing is answered any more, health included |
//! | `never-ready` | start | answers NOT_SERVING for ever |
//! | `slow-start=MS` | start | answers NOT_SERVING for some time |
//! | `fail-to-prepare` | start | ends by itself with a sentence |
//! | `never-listen` | start | runs, and accepts nothing |
//! | `garbage` | start | accepts, and answers with bytes that are no HTTP/2 |
//! | `silent` | start | accepts, and says nothing |
//! | `flood-logs[=LINES]` | start, call | writes lines as fast as it can, 0 without end |
//! | `long-line[=BYTES]` | start, call | writes one line of 1 MiB, and no line feed |
//! | `eat-memory[=MIB]` | start, call | takes and touches memory, 64 MiB |
//! | `spin[=THREADS]` | start, call | burns cores without end |
//! | `fork[=COUNT]` | start, call | starts children that do not end by themselves, at most 100 |
//! | `double-fork` | start, call | leaves a grandchild in a session of its own |
//! | `leak-descriptors[=COUNT]` | start, call | opens files and keeps them; 0 until refused |
//! | `ignore-sigterm` | start | goes on after SIGTERM |
//! | `drop-calls` | start | ends at once on SIGTERM, whatever is in flight |
//! | `hang-on-drain` | start | is asked to drain, and does not answer |
//! | `panic-on-configuration` | start | panics over any configuration |
//! | `bad-figures` | start | counts in figures that no metrics page takes |
//! | `offer-everything` | start | takes any configuration, counts, and drains when it is asked to |
//! | `lie-about-services` | start | claims `demo.v1.Counter`, and implements nothing of it |
//! | `lie-about-name` | start | says by `Lifecycle` that it is `counter` |
//! | `fill-disk[=MIB]` | start, call | fills a file in `/tmp`, 1 GiB or until it is refused |
//! | `close-socket` | call | closes every socket it has, and lives |
//! | `write-on-handshake` | start, call | says on its streams what only a launcher has to say |
//! | `big-answer[=BYTES]` | call | answers with 16 MiB |
//! | `run` | call | runs a program beside it, named by `words`, and tells its output |
//!
//! `after=MS` at the start has the tricks behind it begin so long after it listens. An unknown
//! trick ends it with code 2.

mod sockets;
mod tricks;

use std::{env, future, process::ExitCode, thread, time::Duration};

use blackhole_plugins::demo::DESCRIPTORS;
use blackhole_plugins::demo::misfit_server::{Misfit, MisfitServer};
use blackhole_plugins::demo::{BehaveReply, BehaveRequest, MisbehaveReply, MisbehaveRequest};
use sdk::{Answer, Plugin};
use tonic::{Request, Response, Status};

use tricks::Trick;

fn main() -> ExitCode {
    let mut plugin = Plugin::new("misfit", "1.0.0");
    let (mut immortal, mut after) = (false, None);
    for argument in env::args().skip(1) {
        let Some((trick, amount)) = Trick::parse(&argument) else {
            eprintln!("misfit: {argument:?} is none of its tricks; misfit/main.rs lists them");
            return ExitCode::from(2);
        };
        plugin = match trick {
            Trick::CrashAfter => plugin.prepare(async move {
                tokio::spawn(crash_later(amount));
                Ok::<_, &str>(())
            }),
            Trick::NeverReady => plugin.prepare(future::pending::<Result<(), &str>>()),
            Trick::SlowStart => plugin.prepare(async move {
                tokio::time::sleep(Duration::from_millis(amount)).await;
                Ok::<_, &str>(())
            }),
            Trick::FailToPrepare => {
                plugin.prepare(async { Err("misfit was told not to get ready") })
            }
            Trick::Freeze => plugin.prepare::<_, String>(async { tricks::freeze() }),
            Trick::LieAboutName => Plugin::new("counter", "9.9.9"),
            Trick::LieAboutServices => plugin.service(sockets::Pretender),
            Trick::DropCalls => plugin.drain_deadline(Duration::ZERO),
            Trick::HangOnDrain => plugin.drain(|_| future::pending::<Result<(), &str>>()),
            Trick::PanicOnConfiguration => plugin
                .configure(|_| -> Result<(), &str> { panic!("misfit was told to panic over it") }),
            Trick::BadFigures => plugin.metrics(|| vec![("No Name".into(), f64::NAN)]),
            Trick::OfferEverything => plugin
                .configure(|_| Ok::<_, &str>(()))
                .metrics(|| vec![("figures".into(), 1.0)])
                .drain(|_| future::ready(Ok::<_, &str>(()))),
            Trick::IgnoreSigterm => {
                immortal = true;
                plugin
            }
            Trick::After => {
                after = Some(Duration::from_millis(amount));
                plugin
            }
            Trick::NeverListen => tricks::sleep_for_ever(),
            Trick::Garbage => sockets::garbage(),
            Trick::Silent => sockets::silent(),
            other => match after {
                None => {
                    tricks::play(other, amount);
                    plugin
                }
                Some(after) => plugin.prepare(async move {
                    thread::spawn(move || {
                        thread::sleep(after);
                        tricks::play(other, amount)
                    });
                    Ok::<_, &str>(())
                }),
            },
        };
    }
    let ended = plugin.descriptors(DESCRIPTORS).service(MisfitServer::new(Rogue)).run();
    if immortal {
        eprintln!("misfit: told to end, and goes on");
        tricks::sleep_for_ever();
    }
    ended
}

async fn crash_later(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
    std::process::abort();
}

struct Rogue;

#[tonic::async_trait]
impl Misfit for Rogue {
    async fn behave(&self, _: Request<BehaveRequest>) -> Answer<BehaveReply> {
        let instance = sdk::instance().into();
        Ok(Response::new(BehaveReply { instance, pid: std::process::id() }))
    }

    async fn misbehave(&self, request: Request<MisbehaveRequest>) -> Answer<MisbehaveReply> {
        let MisbehaveRequest { trick, amount, words } = request.into_inner();
        let Some((trick, _)) = Trick::parse(&trick) else {
            return Err(Status::invalid_argument(format!("{trick:?} is none of misfit's tricks")));
        };
        if matches!(trick, Trick::Hang) {
            return future::pending().await;
        }
        if matches!(trick, Trick::Run) {
            return Ok(Response::new(tricks::run(&words)));
        }
        Ok(Response::new(tricks::play(trick, amount)))
    }
}
