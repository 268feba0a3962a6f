//! How many turns that there is no room for may be looked up.
//!
//! A turn that is refused at the door may be a repeat of one that runs: its client must find it. To know that, the store is
//! asked; but a flood of new turns must not become a flood of questions.

use std::time::{Duration, Instant};

use crate::limits::DOOR_LOOKS_PER_SECOND;

/// Counts those looks.
#[derive(Debug, Default)]
pub struct DoorLooks {
    second: Option<Instant>,
    used: u32,
}

impl DoorLooks {
    /// Whether one more may be made now.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.second.is_none_or(|began| now.saturating_duration_since(began) >= Duration::from_secs(1)) {
            self.second = Some(now);
            self.used = 0;
        }
        self.used += 1;
        self.used <= DOOR_LOOKS_PER_SECOND
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_may_look_in_each_second_and_no_more() {
        let (mut looks, start) = (DoorLooks::default(), Instant::now());
        for second in 0..3 {
            let now = start + Duration::from_secs(second);
            let may = (0..10 * DOOR_LOOKS_PER_SECOND).filter(|_| looks.take(now)).count();
            assert_eq!(may, DOOR_LOOKS_PER_SECOND as usize);
            assert!(!looks.take(now + Duration::from_millis(999)));
        }
    }
}
