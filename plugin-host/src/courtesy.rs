//! Whether a plugin gives way to the others: it wants the processor, and nobody calls it. Pure:
//! what it wants, and who called, are arguments.
//!
//! Calls come first. A program that computes without being called may be at something useful, so
//! it goes on with all that the others leave; but whoever calls another plugin does not wait for
//! it. What it wants counts, not what it got: among a hundred of its kind each gets little.

/// Percent of one core that a plugin must want to give way: more than housekeeping takes.
const WANTS_PERCENT: f64 = 25.0;

/// Below this it is calm.
const CALM_PERCENT: f64 = 5.0;

/// Calm looks in a row after which it stands where it stood: with the default interval, a minute.
const CALM_LOOKS: u32 = 6;

/// Calls by anybody but the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Called {
    /// Begun so far.
    pub(crate) begun: u64,
    /// Some of them are under way.
    pub(crate) in_flight: bool,
}

/// One run's place behind the others, or among them.
#[derive(Debug, Default)]
pub(crate) struct Courtesy {
    gives_way: bool,
    begun: u64,
    calm: u32,
}

impl Courtesy {
    /// A run after one that gave way, if `gives_way`: what computes without end after each start
    /// is not met as a stranger each time.
    pub(crate) fn new(gives_way: bool) -> Self {
        Self { gives_way, ..Self::default() }
    }

    pub(crate) fn gives_way(&self) -> bool {
        self.gives_way
    }

    /// A look at what it wanted since the one before, as percent of one core. True where it
    /// stands elsewhere than before.
    pub(crate) fn look(&mut self, wants_percent: f64, called: Called) -> bool {
        let was = self.gives_way;
        if self.heard(called) {
            return was;
        }
        self.calm = if wants_percent < CALM_PERCENT { self.calm + 1 } else { 0 };
        self.gives_way = if was { self.calm < CALM_LOOKS } else { wants_percent >= WANTS_PERCENT };
        was != self.gives_way
    }

    /// Whether somebody calls it, or called since the last look; then it gives way no longer.
    pub(crate) fn heard(&mut self, called: Called) -> bool {
        let heard = called.in_flight || called.begun != self.begun;
        self.begun = called.begun;
        if heard {
            (self.gives_way, self.calm) = (false, 0);
        }
        heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Called = Called { begun: 0, in_flight: false };

    #[test]
    fn who_computes_uncalled_gives_way_until_it_is_called() {
        let mut courtesy = Courtesy::default();
        assert!(!courtesy.look(CALM_PERCENT, NOBODY), "housekeeping");
        assert!(courtesy.look(100.0, NOBODY) && courtesy.gives_way());
        assert!(!courtesy.look(100.0, NOBODY), "it stands there already");
        assert!(courtesy.heard(Called { begun: 1, in_flight: false }));
        assert!(!courtesy.gives_way());
        let stays = Called { begun: 1, in_flight: true };
        assert!(!courtesy.look(100.0, stays), "one call that computes for long is a call");
        assert!(courtesy.look(100.0, Called { begun: 1, in_flight: false }));
    }

    #[test]
    fn who_is_calm_for_long_stands_where_it_stood() {
        let mut courtesy = Courtesy::new(true);
        for _ in 1..CALM_LOOKS {
            assert!(!courtesy.look(0.0, NOBODY));
        }
        assert!(!courtesy.look(10.0, NOBODY), "then it begins anew");
        for _ in 1..CALM_LOOKS {
            assert!(!courtesy.look(0.0, NOBODY));
        }
        assert!(courtesy.look(0.0, NOBODY) && !courtesy.gives_way());
    }
}
