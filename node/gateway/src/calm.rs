//! How much of HTTP/2 a client may send that carries nothing.
//!
//! Settings, pings, priorities, window updates, resets, empty data and frames of unknown kinds cost
//! their sender next to nothing and the receiver a little each; the library beneath bounds some of
//! them, and answers others for ever (CVE-2019-9512 to 9518). Honest clients send them as they are
//! answered: a ping and two window updates for a frame of an answer at most. So each answer's
//! frame earns some, time earns some, and who has none left is cut off.
//!
//! Pure: time is an argument.

use std::fmt;

use tokio::time::Instant;

use crate::{
    bounds::{IDLE_FRAMES_EARNED, IDLE_FRAMES_MAX, IDLE_FRAMES_PER_SECOND},
    heads::Heads,
};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const HEAD_BYTES: usize = 9;

// Source: RFC 9113, section 6.
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// A client sent too many frames that carry nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flood {
    /// The last one's kind.
    kind: u8,
}

impl fmt::Display for Flood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            DATA => "empty DATA",
            2 => "PRIORITY",
            3 => "RST_STREAM",
            4 => "SETTINGS",
            6 => "PING",
            8 => "WINDOW_UPDATE",
            9 => "CONTINUATION",
            _ => "unknown",
        };
        write!(f, "a flood of frames that carry nothing, the last of them {name}")
    }
}

impl std::error::Error for Flood {}

/// Finds frames in one direction of a connection.
#[derive(Debug, Default)]
struct Frames(Heads<HEAD_BYTES>);

impl Frames {
    /// Follows the next bytes until a frame begins: its kind, its flags and its length.
    fn next(&mut self, bytes: &mut &[u8]) -> Option<(u8, u8, usize)> {
        let [a, b, c, kind, flags, ..] = self.0.next(bytes)?;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        self.0.follow(length);
        Some((kind, flags, length))
    }
}

/// How many frames that carry nothing one connection may still send.
#[derive(Debug)]
pub(crate) struct Allowance {
    frames_left: u32,
    refilled: Instant,
}

impl Allowance {
    pub(crate) fn new(now: Instant) -> Self {
        Self { frames_left: IDLE_FRAMES_MAX, refilled: now }
    }

    /// Takes one away; `false` where none is left. `now` is asked for only where that matters.
    pub(crate) fn spend(&mut self, now: impl Fn() -> Instant) -> bool {
        if self.frames_left == 0 {
            let passed = now().saturating_duration_since(self.refilled).as_millis();
            let earned = passed.saturating_mul(u128::from(IDLE_FRAMES_PER_SECOND)) / 1_000;
            let earned = u32::try_from(earned).unwrap_or(u32::MAX).min(IDLE_FRAMES_MAX);
            if earned == 0 {
                return false;
            }
            self.frames_left = earned;
            self.refilled = now();
        }
        self.frames_left -= 1;
        true
    }

    /// For a frame of an answer.
    fn earn(&mut self) {
        self.frames_left = self.frames_left.saturating_add(IDLE_FRAMES_EARNED).min(IDLE_FRAMES_MAX);
    }
}

/// What one connection may still send.
#[derive(Debug)]
pub(crate) struct Calm {
    /// Bytes of the preface that have come; `None` where it speaks something else.
    preface: Option<usize>,
    read: Frames,
    wrote: Frames,
    allowance: Allowance,
}

impl Calm {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            preface: Some(0),
            read: Frames::default(),
            wrote: Frames::default(),
            allowance: Allowance::new(now),
        }
    }

    /// Follows what the client sent; `now` is asked for only where that matters.
    pub(crate) fn read(
        &mut self,
        mut bytes: &[u8],
        now: impl Fn() -> Instant,
    ) -> Result<(), Flood> {
        let Some(known) = self.preface else { return Ok(()) };
        if known < PREFACE.len() {
            let coming = bytes.len().min(PREFACE.len() - known);
            if bytes[..coming] != PREFACE[known..known + coming] {
                self.preface = None;
                return Ok(());
            }
            self.preface = Some(known + coming);
            bytes = &bytes[coming..];
        }
        while let Some((kind, flags, length)) = self.read.next(&mut bytes) {
            let carries = match kind {
                DATA => length > 0 || flags & END_STREAM != 0,
                HEADERS => true,
                _ => false,
            };
            if !carries && !self.allowance.spend(&now) {
                return Err(Flood { kind });
            }
        }
        Ok(())
    }

    /// Follows what the client was sent.
    pub(crate) fn wrote(&mut self, mut bytes: &[u8]) {
        if self.preface != Some(PREFACE.len()) {
            return;
        }
        while let Some((kind, ..)) = self.wrote.next(&mut bytes) {
            if matches!(kind, DATA | HEADERS) {
                self.allowance.earn();
            }
        }
    }
}

// Keep-alives of the most eager client, one a second, never use it up.
const _: () = assert!(IDLE_FRAMES_PER_SECOND >= 16);

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
        [&length[1..], &[kind, flags, 0, 0, 0, 1], payload].concat()
    }

    fn begun() -> (Calm, Instant) {
        let now = Instant::now();
        let mut calm = Calm::new(now);
        calm.read(PREFACE, || now).expect("a preface");
        (calm, now)
    }

    #[test]
    fn each_kind_that_carries_nothing_is_bounded_and_time_gives_some_back() {
        for (kind, payload) in
            [(0, 0), (2, 5), (3, 4), (4, 0), (4, 6), (6, 8), (8, 4), (9, 9), (0xee, 40)]
        {
            let (mut calm, now) = begun();
            let one = frame(kind, 0, &vec![0; payload]);
            for _ in 0..IDLE_FRAMES_MAX {
                calm.read(&one, || now).expect("within the bound");
            }
            assert_eq!(calm.read(&one, || now), Err(Flood { kind }));
            let later = now + Duration::from_secs(1);
            calm.read(&one, || later).expect("a second later");
        }
    }

    #[test]
    fn what_answers_an_answer_never_runs_out() {
        let (mut calm, now) = begun();
        let answer = [frame(1, 4, b"head"), frame(0, 0, b"data")].concat();
        let (ping, update) = (frame(6, 0, &[0; 8]), frame(8, 0, &[0; 4]));
        for _ in 0..IDLE_FRAMES_MAX {
            calm.wrote(&answer);
            for frame in [&ping, &update, &update, &ping] {
                calm.read(frame, || now).expect("honest");
            }
        }
    }

    #[test]
    fn acknowledgements_earn_nothing() {
        let (mut calm, now) = begun();
        let (ping, pong) = (frame(6, 0, &[0; 8]), frame(6, 1, &[0; 8]));
        let sent = (0..).take_while(|_| {
            calm.wrote(&pong);
            calm.read(&ping, || now).is_ok()
        });
        assert_eq!(sent.count(), IDLE_FRAMES_MAX as usize);
    }

    #[test]
    fn calls_and_what_is_not_http2_are_not_counted() {
        let (mut calm, now) = begun();
        let call = [frame(1, 4, b"head"), frame(0, 0, &[0; 20]), frame(0, 1, b"")].concat();
        for _ in 0..IDLE_FRAMES_MAX * 2 {
            calm.read(&call, || now).expect("calls");
        }
        let mut other = Calm::new(now);
        for _ in 0..IDLE_FRAMES_MAX * 2 {
            other.read(b"GET / HTTP/1.1\r\n\r\n", || now).expect("HTTP/1");
        }
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            payloads in prop::collection::vec(0..40_usize, 1..50), cut in 1..30_usize,
        ) {
            let (mut calm, now) = begun();
            let wire: Vec<u8> =
                payloads.iter().flat_map(|length| frame(6, 0, &vec![6; *length])).collect();
            for chunk in wire.chunks(cut) {
                calm.read(chunk, || now).expect("few");
            }
            let spent = IDLE_FRAMES_MAX - calm.allowance.frames_left;
            prop_assert_eq!(spent as usize, payloads.len());
        }
    }
}
