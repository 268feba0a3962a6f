//! How many gateways a new release of the operator replaces the pods of at a time.
//!
//! A new release may render every gateway anew: its default images are others, or a pod's template is. What their authors change
//! is done at once; what only the operator changes waits for one of a few places. A gateway keeps its place until its pods
//! are replaced: a release that does not run stops at the first few, and the others go on as they were.
//!
//! A gateway says that it has a place before anything of it is written, so that an operator that takes over knows
//! who has one.

use std::collections::BTreeSet;

/// Gateways that a new release may roll at a time, unless the operator is told otherwise.
pub const UPGRADES_AT_ONCE: u16 = 10;

/// The places, and who has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrades {
    at_once: usize,
    taken: BTreeSet<String>,
}

/// What matters of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Its uid.
    pub uid: &'a str,
    /// Whether what its pods are made from is to be other than what an operator wrote last.
    pub differs: bool,
    /// Whether its author may be the reason: the resource was edited, or held back, since it was last told about.
    pub edited: bool,
    /// Whether all of its pods are of one template, and take clients.
    pub whole: bool,
    /// Whether its status says that it has a place.
    pub told: bool,
    /// Whether nothing of it may be changed now: it is paused, or names what is not there.
    pub held: bool,
}

/// What a gateway may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// All that it asks for: this is no upgrade.
    Free,
    /// Nothing before its status says that it has a place.
    Begin,
    /// All that it asks for, at its place.
    Go,
    /// Nothing: others have all the places.
    Wait {
        /// How many those are.
        others: usize,
    },
}

impl Upgrades {
    /// All places are free.
    #[must_use]
    pub fn new(at_once: u16) -> Self {
        Self { at_once: usize::from(at_once.max(1)), taken: BTreeSet::new() }
    }

    /// Notes who had a place before this operator acted.
    pub fn resume(&mut self, told: impl IntoIterator<Item = String>) {
        self.taken.extend(told);
    }

    /// Whose turn it is. Takes and gives places.
    pub fn turn(&mut self, gateway: &Candidate<'_>) -> Turn {
        if self.taken.contains(gateway.uid) {
            let over = if gateway.differs { gateway.held } else { gateway.whole };
            if over {
                self.leave(gateway.uid);
                return Turn::Free;
            }
            let waits_for_word = gateway.differs && !gateway.told && !gateway.edited;
            return if waits_for_word { Turn::Begin } else { Turn::Go };
        }
        // Who is not whole loses nothing, and would keep a place for others' faults.
        if !gateway.differs || gateway.edited || gateway.held || !gateway.whole {
            return Turn::Free;
        }
        if self.taken.len() >= self.at_once {
            return Turn::Wait { others: self.taken.len() };
        }
        self.taken.insert(gateway.uid.to_owned());
        Turn::Begin
    }

    /// Gives a gateway's place back, if it has one: it is gone.
    pub fn leave(&mut self, uid: &str) {
        self.taken.remove(uid);
    }

    /// How many places are taken.
    #[must_use]
    pub fn taken(&self) -> usize {
        self.taken.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A gateway that serves, and that a new release renders anew.
    fn old(uid: &str) -> Candidate<'_> {
        Candidate { uid, differs: true, edited: false, whole: true, told: false, held: false }
    }

    #[test]
    fn a_few_are_rolled_at_a_time_and_say_so_first() {
        let mut upgrades = Upgrades::new(2);
        assert_eq!(upgrades.turn(&old("a")), Turn::Begin);
        assert_eq!(upgrades.turn(&old("a")), Turn::Begin, "its word has not been seen yet");
        assert_eq!(upgrades.turn(&Candidate { told: true, ..old("a") }), Turn::Go);
        assert_eq!(upgrades.turn(&old("b")), Turn::Begin);
        assert_eq!(upgrades.turn(&old("c")), Turn::Wait { others: 2 });
        let rolling = Candidate { differs: false, whole: false, told: true, ..old("a") };
        assert_eq!(upgrades.turn(&rolling), Turn::Go);
        assert_eq!(upgrades.turn(&old("c")), Turn::Wait { others: 2 }, "`a` is still rolling");
        assert_eq!(upgrades.turn(&Candidate { whole: true, ..rolling }), Turn::Free);
        assert_eq!(upgrades.turn(&old("c")), Turn::Begin);
    }

    #[test]
    fn what_authors_change_and_what_is_broken_anyway_waits_for_nobody() {
        let mut upgrades = Upgrades::new(1);
        assert_eq!(upgrades.turn(&old("a")), Turn::Begin);
        assert_eq!(upgrades.turn(&Candidate { edited: true, ..old("b") }), Turn::Free);
        assert_eq!(upgrades.turn(&Candidate { whole: false, ..old("c") }), Turn::Free);
        assert_eq!(upgrades.turn(&Candidate { differs: false, ..old("d") }), Turn::Free);
        assert_eq!(upgrades.turn(&Candidate { held: true, ..old("e") }), Turn::Free);
        assert_eq!(upgrades.taken(), 1);
        assert_eq!(upgrades.turn(&Candidate { edited: true, ..old("a") }), Turn::Go, "an edit needs no word");
    }

    #[test]
    fn places_come_back_from_those_that_are_gone_or_held() {
        let mut upgrades = Upgrades::new(1);
        upgrades.turn(&old("a"));
        assert_eq!(upgrades.turn(&Candidate { held: true, ..old("a") }), Turn::Free);
        assert_eq!(upgrades.turn(&old("b")), Turn::Begin);
        upgrades.leave("b");
        assert_eq!(upgrades.turn(&old("c")), Turn::Begin);
    }

    #[test]
    fn the_next_operator_goes_on_with_those_that_had_a_place() {
        let mut upgrades = Upgrades::new(2);
        upgrades.resume(["a", "b", "c"].map(str::to_owned));
        assert_eq!(upgrades.turn(&old("d")), Turn::Wait { others: 3 }, "it may have been told of more places");
        assert_eq!(upgrades.turn(&Candidate { told: true, ..old("a") }), Turn::Go);
        assert_eq!(upgrades.turn(&Candidate { differs: false, ..old("a") }), Turn::Free);
    }
}
