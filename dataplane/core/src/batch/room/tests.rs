use super::*;

const PLACES: usize = 20;

/// Calls with the given numbers beside them; each beyond the workers waits for a quarter of 200 ms.
fn observe(room: &mut Room, workers: usize, running: impl IntoIterator<Item = usize>, alone_ms: u64, now: Instant) {
    for running in running {
        let waits = 50 * running.saturating_sub(workers) as u64;
        room.observe(1, running, Duration::from_millis(alone_ms + waits), PLACES, now);
    }
}

fn levels(most: usize, each: usize) -> impl Iterator<Item = usize> {
    (1..=most).flat_map(move |running| std::iter::repeat_n(running, each))
}

#[test]
fn the_limit_is_the_last_number_of_calls_without_a_wait() {
    let now = Instant::now();
    let mut room = Room::default();
    assert_eq!((room.known(), room.limit(PLACES)), (None, PLACES));
    observe(&mut room, 4, levels(4, 50), 80, now);
    assert_eq!(room.known(), None, "nothing waits yet");
    observe(&mut room, 4, levels(8, 10), 80, now);
    assert_eq!((room.known(), room.limit(PLACES), room.limit(3)), (Some(4), 4, 3));
}

#[test]
fn a_sudden_load_is_understood_though_each_number_was_met_once() {
    let mut room = Room::default();
    observe(&mut room, 4, levels(20, 1), 80, Instant::now());
    assert!(room.known().is_some_and(|limit| limit <= 8), "{:?}", room.known());
}

#[test]
fn sizes_are_compared_each_with_itself() {
    let now = Instant::now();
    let mut room = Room::default();
    for running in levels(8, 20) {
        room.observe(1, running, Duration::from_millis(80), PLACES, now);
        room.observe(4, running, Duration::from_millis(140), PLACES, now);
    }
    assert_eq!(room.known(), None);
    assert_eq!(room.best(4), Some(Duration::from_millis(140)));
    assert_eq!(room.best(2), None);
}

#[test]
fn a_server_that_becomes_slower_is_not_taken_for_a_smaller_one() {
    let now = Instant::now();
    let mut room = Room::default();
    observe(&mut room, 4, levels(4, 20), 80, now);
    observe(&mut room, 4, levels(4, 20), 200, now + ROOM_FORGET);
    assert_eq!(room.known(), None);
}

#[test]
fn one_more_is_tried_now_and_then_and_a_larger_server_is_found() {
    let now = Instant::now();
    let mut room = Room::default();
    observe(&mut room, 4, levels(8, 10), 80, now);
    let mut sent = 0;
    while room.limit(PLACES) == 4 {
        room.sent(4);
        sent += 1;
    }
    assert_eq!((sent, room.limit(PLACES)), (16, 5), "four times the limit");
    // It waits: the server is as it was.
    room.sent(5);
    observe(&mut room, 4, [5], 80, now);
    assert_eq!(room.limit(PLACES), 4);
    // Now it is larger.
    for _ in 0..GOOD_PROBES {
        observe(&mut room, 8, [4, 5], 80, now);
    }
    assert_eq!(room.known(), Some(5));
}

#[test]
fn a_limit_that_is_always_reached_is_compared_with_fewer_calls() {
    let now = Instant::now();
    let mut room = Room::default();
    // Only ever twenty at once: that they all wait does not show by itself.
    let unjudged = UNHINDERED_MIN as usize - 1;
    observe(&mut room, 4, std::iter::repeat_n(20, unjudged + BLIND_CALLS as usize), 80, now);
    assert_eq!((room.known(), room.limit(PLACES)), (None, 15));
    observe(&mut room, 4, std::iter::repeat_n(15, DIP_CALLS as usize), 80, now);
    assert_eq!((room.known(), room.limit(PLACES)), (Some(15), 15));
}

#[test]
fn looks_below_that_find_nothing_become_rare() {
    let now = Instant::now();
    let mut room = Room::default();
    let mut pauses = Vec::new();
    for _ in 0..3 {
        let mut calls = 0;
        while room.limit(PLACES) == PLACES {
            observe(&mut room, 100, [20], 80, now);
            calls += 1;
        }
        pauses.push(calls);
        observe(&mut room, 100, std::iter::repeat_n(20, DIP_CALLS as usize), 80, now);
    }
    // The first two calls have nothing to be compared with at all.
    assert_eq!(pauses, [2 + 32, 64, 128]);
}
