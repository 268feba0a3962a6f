use super::*;

const TARGET: Duration = Duration::from_millis(300);
const MAX_DELAY: Duration = Duration::from_millis(50);

fn target() -> Target {
    Target::new(BatchPolicy::Adaptive { max_size: 4, max_delay: MAX_DELAY, first_token_target: TARGET })
}

fn took(total: u64, held: u64, own: u64) -> Took {
    let ms = Duration::from_millis;
    Took { total: ms(total), held: ms(held), own: ms(own), size: 4, queue: false }
}

fn observe(target: &mut Target, count: usize, took: Took, busy: bool) {
    (0..count).for_each(|_| target.observe(took, busy));
}

#[test]
fn the_window_opens_by_steps_while_the_server_is_busy_and_closes_when_it_is_not() {
    let mut target = target();
    assert_eq!((target.cap(), target.window()), (4, Duration::ZERO));
    observe(&mut target, TARGET_STEP_ASKS, took(100, 0, 80), true);
    assert_eq!(target.window(), MAX_DELAY / 5);
    observe(&mut target, 10 * TARGET_STEP_ASKS, took(100, 0, 80), true);
    assert_eq!(target.window(), MAX_DELAY, "not beyond the ceiling");
    observe(&mut target, TARGET_STEP_ASKS, took(100, 0, 80), false);
    assert_eq!(target.window(), MAX_DELAY / 2);
    observe(&mut target, 3 * TARGET_STEP_ASKS, took(100, 0, 80), false);
    assert_eq!(target.window(), Duration::ZERO);
}

#[test]
fn batches_become_smaller_by_half_when_their_own_time_misses_the_target_and_grow_by_one_when_it_is_kept() {
    let mut target = target();
    observe(&mut target, TARGET_STEP_ASKS, took(310, 0, 300), true);
    assert_eq!(target.cap(), 2);
    observe(&mut target, TARGET_STEP_ASKS, took(310, 0, 300), true);
    assert_eq!(target.cap(), 1);
    observe(&mut target, TARGET_STEP_ASKS, took(250, 0, 200), true);
    assert_eq!(target.cap(), 2);
    observe(&mut target, 10 * TARGET_STEP_ASKS, took(250, 0, 200), true);
    assert_eq!(target.cap(), 4, "not beyond the ceiling");
}

#[test]
fn the_window_halves_when_places_were_held_back_for_too_long() {
    let mut target = target();
    observe(&mut target, 5 * TARGET_STEP_ASKS, took(100, 0, 80), true);
    observe(&mut target, TARGET_STEP_ASKS, took(310, 120, 140), true);
    assert_eq!((target.cap(), target.window()), (4, MAX_DELAY / 2));
}

#[test]
fn where_asks_wait_for_places_batches_do_not_become_smaller() {
    let mut target = target();
    observe(&mut target, TARGET_STEP_ASKS, took(310, 0, 300), true);
    assert_eq!(target.cap(), 2);
    observe(&mut target, 2 * TARGET_STEP_ASKS, took(900, 50, 140), true);
    assert_eq!((target.cap(), target.window()), (4, MAX_DELAY / 5 * 2));
    // A smaller batch would only make a long line longer.
    observe(&mut target, 2 * TARGET_STEP_ASKS, Took { queue: true, ..took(900, 0, 300) }, true);
    assert_eq!(target.cap(), 4);
    // One ask alone cannot be too large a batch.
    observe(&mut target, 2 * TARGET_STEP_ASKS, Took { size: 1, ..took(400, 0, 350) }, true);
    assert_eq!(target.cap(), 4);
}

#[test]
fn one_of_a_hundred_may_miss_it() {
    let mut target = target();
    for i in 0..2_000 {
        let took = if i % 150 == 0 { took(400, 0, 300) } else { took(100, 0, 80) };
        target.observe(took, false);
        assert_eq!(target.cap(), 4, "after {i}");
    }
    let mut smallest = 4;
    for i in 0..400 {
        target.observe(if i % 20 == 0 { took(400, 0, 300) } else { took(100, 0, 80) }, false);
        smallest = smallest.min(target.cap());
    }
    assert_eq!(smallest, 2, "five of a hundred may not");
}
