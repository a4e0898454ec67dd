//! Where a plugin stands among the others when cores are scarce. Pure: what it wants, and who
//! called, are arguments.
//!
//! Calls come first. A program that computes without being called may be at something useful, so
//! it goes on with all that the others leave; but whoever calls another plugin does not wait for
//! it. What it wants counts, not what it got: among a hundred of its kind each gets little.

use crate::limits::Standing;

/// Percent of one core that an uncalled plugin must want to stand behind the others: more than
/// housekeeping takes.
const WANTS_PERCENT: f64 = 25.0;

/// Below this it is calm.
const CALM_PERCENT: f64 = 5.0;

/// Calm looks in a row after which it is behind them no longer: a minute with the default interval.
const CALM_LOOKS: u32 = 6;

/// Calls by anybody but the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Called {
    /// Begun so far.
    pub(crate) begun: u64,
    /// Some of them are under way.
    pub(crate) in_flight: bool,
}

/// One run's place among the others.
#[derive(Debug, Default)]
pub(crate) struct Courtesy {
    standing: Standing,
    begun: u64,
    calm: u32,
}

impl Courtesy {
    /// A run that begins where the one before it stood: what computes without end after each start
    /// is not met as a stranger each time.
    pub(crate) fn new(standing: Standing) -> Self {
        Self { standing, ..Self::default() }
    }

    pub(crate) fn standing(&self) -> Standing {
        self.standing
    }

    /// A look at what it wanted since the one before, as percent of one core. True where it
    /// stands elsewhere than before.
    pub(crate) fn look(&mut self, wants_percent: f64, called: Called) -> bool {
        let was = self.standing;
        if !self.heard(called) {
            self.calm = if wants_percent < CALM_PERCENT { self.calm + 1 } else { 0 };
            let behind = match was {
                Standing::Behind => self.calm < CALM_LOOKS,
                Standing::Called | Standing::Uncalled => wants_percent >= WANTS_PERCENT,
            };
            self.standing = if behind { Standing::Behind } else { Standing::Uncalled };
        }
        was != self.standing
    }

    /// Whether somebody calls it, or called since the last look; then it stands in front.
    pub(crate) fn heard(&mut self, called: Called) -> bool {
        let heard = called.in_flight || called.begun != self.begun;
        self.begun = called.begun;
        if heard {
            (self.standing, self.calm) = (Standing::Called, 0);
        }
        heard
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOBODY: Called = Called { begun: 0, in_flight: false };

    #[test]
    fn who_is_called_stands_in_front_and_who_computes_uncalled_behind() {
        let mut courtesy = Courtesy::default();
        assert!(!courtesy.look(CALM_PERCENT, NOBODY), "housekeeping");
        assert!(courtesy.look(100.0, NOBODY));
        assert_eq!(courtesy.standing(), Standing::Behind);
        assert!(!courtesy.look(100.0, NOBODY), "it stands there already");
        assert!(courtesy.heard(Called { begun: 1, in_flight: false }));
        assert_eq!(courtesy.standing(), Standing::Called);
        let stays = Called { begun: 1, in_flight: true };
        assert!(!courtesy.look(100.0, stays), "one call that computes for long is a call");
        assert!(courtesy.look(100.0, Called { begun: 1, in_flight: false }));
        assert_eq!(courtesy.standing(), Standing::Behind);
    }

    #[test]
    fn who_is_called_no_longer_makes_room() {
        let mut courtesy = Courtesy::default();
        assert!(courtesy.look(0.0, Called { begun: 7, in_flight: false }));
        assert!(courtesy.look(0.0, Called { begun: 7, in_flight: false }));
        assert_eq!(courtesy.standing(), Standing::Uncalled);
    }

    #[test]
    fn who_is_calm_for_long_is_behind_no_longer() {
        let mut courtesy = Courtesy::new(Standing::Behind);
        for _ in 1..CALM_LOOKS {
            assert!(!courtesy.look(0.0, NOBODY));
        }
        assert!(!courtesy.look(10.0, NOBODY), "then it begins anew");
        for _ in 1..CALM_LOOKS {
            assert!(!courtesy.look(0.0, NOBODY));
        }
        assert!(courtesy.look(0.0, NOBODY));
        assert_eq!(courtesy.standing(), Standing::Uncalled);
    }
}
