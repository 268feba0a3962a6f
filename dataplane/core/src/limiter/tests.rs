#![allow(clippy::unwrap_used, clippy::panic)]

use std::{net::IpAddr, sync::Arc};

use proptest::prelude::*;

use super::{
    bucket::Bucket,
    table::{Done, Mark, Op, Outcome, Table, Terms},
    *,
};
use crate::{
    limits::{LIMIT_HELD_TTL, LIMIT_KEPT_TTL, settings::LIMIT_AMOUNT},
    log::SessionId,
};

fn rule(per: Per, unit: Unit, per_minute: u64, burst: u64) -> Rule {
    Rule { per, unit, limit: Limit { per_minute, burst } }
}

fn rules() -> Rules {
    Rules(vec![
        rule(Per::Gateway, Unit::Requests, 600, 5),
        rule(Per::User, Unit::Requests, 60, 3),
        rule(Per::User, Unit::Tokens, 600, 100),
        rule(Per::Gateway, Unit::Tokens, 6_000, 150),
    ])
}

fn name(text: &str) -> Arc<str> {
    text.into()
}

fn take(mark: &str, tokens: u64, user: &str) -> Op {
    let buckets = vec![name("gr"), name(&format!("ur:{user}")), name(&format!("ut:{user}")), name("gt")];
    Op::Take { mark: Some(name(mark)), tokens, buckets }
}

struct World {
    table: Table,
    rules: Rules,
    now: u64,
    shares: u64,
}

impl World {
    fn new(rules: Rules) -> Self {
        Self { table: Table::default(), rules, now: 1_790_000_000_000_000, shares: 1 }
    }

    fn terms(&self) -> Terms<'_> {
        Terms { rules: &self.rules, now: self.now, shares: self.shares }
    }

    fn run(&mut self, op: &Op) -> Outcome {
        let Self { table, rules, now, shares } = self;
        table.execute(Terms { rules, now: *now, shares: *shares }, op)
    }

    fn done(&mut self, op: &Op) -> Done {
        self.run(op).done
    }

    fn level(&self, bucket: &str) -> u64 {
        self.table.bucket(self.terms(), bucket).unwrap().level
    }

    fn levels(&self) -> Vec<u64> {
        ["gr", "ur:a", "ut:a", "gt"].iter().map(|bucket| self.level(bucket)).collect()
    }
}

#[test]
fn all_limits_or_none() {
    let mut world = World::new(rules());
    for n in 0..3 {
        assert_eq!(world.done(&take(&format!("m{n}"), 20, "a")), Done::Done);
    }
    // The user's requests are used up; of the others nothing is taken.
    let before = world.levels();
    assert_eq!(before, [2 * UNIT, 0, 40 * UNIT, 90 * UNIT]);
    let refused = world.run(&take("m3", 20, "a"));
    assert_eq!((refused.done, refused.values), (Done::Refused, before.clone()));
    assert_eq!(world.levels(), before);
    // A user with tokens left, when the gateway has none.
    assert_eq!(world.done(&take("m4", 91, "b")), Done::Refused);
    assert_eq!(world.done(&take("m4", 90, "b")), Done::Done);
    assert_eq!(world.level("gt"), 0);
    // In the moment in which there is one request again, not before.
    world.now += 999_999;
    assert_eq!(world.done(&take("m5", 10, "a")), Done::Refused);
    world.now += 1;
    assert_eq!(world.done(&take("m5", 10, "a")), Done::Done);
}

#[test]
fn a_repeat_takes_nothing_and_is_never_refused() {
    let mut world = World::new(rules());
    assert_eq!(world.done(&take("m", 20, "a")), Done::Done);
    assert_eq!(world.done(&take("n", 80, "a")), Done::Done);
    let before = world.levels();
    for _ in 0..10 {
        assert_eq!(world.done(&take("m", 20, "a")), Done::Known);
    }
    assert_eq!(world.levels(), before);
    world.run(&Op::Settle { mark: name("m"), used: 0 });
    assert_eq!(world.done(&take("m", 20, "a")), Done::Known, "also when it is over");
    world.now += LIMIT_KEPT_TTL.as_micros() as u64 + 1_000;
    assert_eq!(world.done(&take("m", 20, "a")), Done::Done, "but not for ever");
}

#[test]
fn settled_is_once_and_gives_back_only() {
    let mut world = World::new(rules());
    world.run(&take("m", 60, "a"));
    let settle = |used| Op::Settle { mark: name("m"), used };
    assert_eq!(world.run(&settle(25)), Outcome { done: Done::Done, values: vec![35] });
    assert_eq!((world.level("ut:a"), world.level("gt")), (75 * UNIT, 125 * UNIT));
    assert_eq!(world.done(&settle(0)), Done::Nothing);
    assert_eq!(world.level("ut:a"), 75 * UNIT);
    world.run(&take("more", 30, "a"));
    let used_more = Op::Settle { mark: name("more"), used: 50 };
    assert_eq!(world.run(&used_more), Outcome { done: Done::Done, values: vec![0] });
    assert_eq!(world.level("ut:a"), 45 * UNIT);
}

#[test]
fn an_extension_is_for_all_buckets_or_none_and_names_the_sum() {
    let mut world = World::new(rules());
    world.run(&take("m", 60, "a"));
    let extend = |tokens| Op::Extend { mark: name("m"), tokens };
    assert_eq!(world.run(&extend(80)), Outcome { done: Done::Done, values: vec![80] });
    assert_eq!(world.run(&extend(80)), Outcome { done: Done::Done, values: vec![80] }, "again");
    assert_eq!((world.level("ut:a"), world.level("gt")), (20 * UNIT, 70 * UNIT));
    // Ten tokens are missing at ten a second.
    assert_eq!(world.run(&extend(110)), Outcome { done: Done::Refused, values: vec![1_000_000] });
    assert_eq!((world.level("ut:a"), world.level("gt")), (20 * UNIT, 70 * UNIT));
    world.run(&Op::Settle { mark: name("m"), used: 80 });
    assert_eq!(world.done(&extend(81)), Done::Nothing);
    assert_eq!(world.run(&Op::Extend { mark: name("unknown"), tokens: 1 }).done, Done::Nothing);
}

#[test]
fn what_was_not_carried_out_may_take_again() {
    let mut world = World::new(rules());
    world.run(&take("m", 60, "a"));
    let undo = |buckets: &[&str]| Op::Undo { mark: name("m"), buckets: buckets.iter().map(|b| name(b)).collect() };
    assert_eq!(world.run(&undo(&[])), Outcome { done: Done::Done, values: vec![60] });
    assert_eq!(world.levels(), [4 * UNIT, 2 * UNIT, 100 * UNIT, 150 * UNIT], "the request stays counted");
    assert_eq!(world.done(&undo(&["gr"])), Done::Nothing);
    assert_eq!(world.done(&take("m", 60, "a")), Done::Done);
    assert_eq!(world.done(&undo(&["gr", "ur:a"])), Done::Done);
    assert_eq!(world.levels(), [4 * UNIT, 2 * UNIT, 100 * UNIT, 150 * UNIT], "or does not");
}

#[test]
fn a_request_that_is_undone_was_never_counted() {
    let mut world = World::new(rules());
    let before = world.levels();
    let take = take("m", 60, "a");
    world.run(&take);
    let Op::Take { mark: Some(mark), buckets, .. } = take else { panic!("{take:?}") };
    assert_eq!(world.done(&Op::undo(mark, buckets)), Done::Done);
    assert_eq!(world.levels(), before);
}

#[test]
fn a_buckets_name_tells_what_it_counts() {
    for per in [Per::Session, Per::User, Per::Address, Per::Gateway] {
        for unit in [Unit::Requests, Unit::Tokens] {
            let code = rule(per, unit, 1, 1).code();
            assert_eq!((Unit::of(code), Unit::of(&format!("{code}:rt"))), (Some(unit), Some(unit)), "{code}");
        }
    }
    assert_eq!((Unit::of(""), Unit::of("g"), Unit::of(&mark_of_request(1))), (None, None, None));
}

#[test]
fn tokens_of_a_turn_that_nobody_settles_stay_spent() {
    let mut world = World::new(Rules(vec![rule(Per::Gateway, Unit::Tokens, 1, 100)]));
    world.run(&Op::Take { mark: Some(name("m")), tokens: 100, buckets: vec![name("gt")] });
    world.now += LIMIT_HELD_TTL.as_micros() as u64 + 1_000;
    assert_eq!(world.done(&Op::Settle { mark: name("m"), used: 0 }), Done::Nothing);
    assert_eq!(world.level("gt") / UNIT, 60, "an hour of one a minute");
}

#[test]
fn a_limit_that_changes_applies_at_once_and_keeps_the_level() {
    let mut world = World::new(Rules(vec![rule(Per::Gateway, Unit::Requests, 60, 10)]));
    let take = Op::Take { mark: None, tokens: 0, buckets: vec![name("gr")] };
    world.run(&take);
    world.run(&take);
    world.rules.0[0].limit.burst = 100;
    assert_eq!(world.level("gr"), 8 * UNIT);
    world.rules.0[0].limit.burst = 3;
    assert_eq!(world.level("gr"), 3 * UNIT);
    world.run(&take);
    world.rules.0[0].limit = Limit { per_minute: 600, burst: 100 };
    world.now += 1_000_000;
    assert_eq!(world.level("gr"), 12 * UNIT);
    // A limit that is gone refuses nobody.
    world.rules = Rules::default();
    assert_eq!(world.done(&take), Done::Done);
}

#[test]
fn a_clock_that_is_put_back_gives_nothing_and_does_not_stop_the_bucket_for_long() {
    let limit = Limit { per_minute: 60, burst: 10 };
    let (second, then) = (1_000_000, 1_000_000_000_000);
    let empty = Bucket { level: 0, at: then };
    let back = empty.refilled(&limit, then - 5 * second);
    assert_eq!(back.level, 0);
    assert_eq!(back.refilled(&limit, then + 2 * second).level, 2 * UNIT, "not seven");
    // By an hour: filling it takes ten seconds only.
    let back = empty.refilled(&limit, then - 3_600 * second);
    assert_eq!(back.level, 0);
    assert_eq!(back.refilled(&limit, then - 3_598 * second).level, 2 * UNIT);
}

#[test]
fn the_greatest_numbers_fit() {
    let most = u64::try_from(*LIMIT_AMOUNT.end()).unwrap();
    let limit = Limit { per_minute: most * 60, burst: most };
    // Twice as much is still exact in Lua: what is left and what comes in.
    assert!(limit.capacity() < (1 << 53));
    let slow = Limit { per_minute: 1, burst: most };
    assert_eq!(Bucket { level: 0, at: 0 }.refilled(&limit, u64::MAX).level, limit.capacity());
    assert_eq!(Bucket { level: 0, at: 0 }.full_in_ms(&slow), most * 60_000);
    assert_eq!(Bucket { level: 0, at: 0 }.holds_in_us(slow.capacity(), &slow), most * UNIT);
}

#[test]
fn a_share_is_a_part_of_the_rate_and_of_the_burst() {
    let mut world = World::new(Rules(vec![rule(Per::Gateway, Unit::Requests, 100, 10)]));
    world.shares = 3;
    let take = Op::Take { mark: None, tokens: 0, buckets: vec![name("gr")] };
    let admitted = |world: &mut World| (0..100).filter(|_| world.done(&take) == Done::Done).count();
    assert_eq!(admitted(&mut world), 3, "a third of ten");
    let mut over_time = 0;
    for _ in 0..600 {
        world.now += 1_000_000;
        over_time += admitted(&mut world);
    }
    assert!((333..=334).contains(&over_time), "{over_time} in ten minutes: a third of a thousand");
    // A share of less than one request is not none.
    let mut world = World::new(Rules(vec![rule(Per::Gateway, Unit::Requests, 60, 1)]));
    world.shares = 4;
    assert_eq!(admitted(&mut world), 1);
    world.now += 3_999_999;
    assert_eq!(admitted(&mut world), 0);
    world.now += 1;
    assert_eq!(admitted(&mut world), 1);
}

#[test]
fn buckets_are_told_apart_and_tell_nothing() {
    let address: IpAddr = "10.0.0.1".parse().unwrap();
    let session = SessionKey::new("t", "alice@example.com", &SessionId::parse("s").unwrap());
    let who = Who { session: Some(&session), tenant: "t", principal: "alice@example.com", address };
    let each = [Per::Session, Per::User, Per::Address, Per::Gateway].map(|per| rule(per, Unit::Tokens, 1, 1));
    let names: Vec<_> = each.iter().map(|rule| who.bucket(rule)).collect();
    assert_eq!(&*names[3], "gt");
    assert!(names.iter().all(|name| !name.contains("alice") && name.len() <= 35 && name.len() != 34), "{names:?}");
    for (rule, name) in each.iter().zip(&names) {
        assert_eq!(Rules(each.to_vec()).of(name), Some(rule));
    }
    let moved = |principal: &str, tenant: &str| Who { principal, tenant, ..who.clone() }.bucket(&each[1]);
    assert_ne!(moved("ab", "c"), moved("b", "ca"));
    let at = |text: &str| Who { address: text.parse().unwrap(), ..who.clone() }.bucket(&each[2]);
    assert_eq!(at("2001:db8::1"), at("2001:db8::2"), "one network");
    assert_ne!(at("2001:db8:0:1::1"), at("2001:db8::1"));
    assert_eq!(at("::ffff:10.0.0.1"), at("10.0.0.1"));
    let stateless = Who { session: None, ..who.clone() };
    assert_ne!(stateless.bucket(&each[0]), names[0]);
    let turn = |text: &str| TurnId::parse(text).unwrap();
    assert_ne!(mark_of(&session, &turn("a")), mark_of(&session, &turn("b")));
}

#[test]
fn what_has_expired_is_thrown_out() {
    let mut world = World::new(Rules(vec![rule(Per::User, Unit::Requests, 6_000, 10)]));
    for n in 0..5_000 {
        world.run(&Op::Take { mark: Some(name(&format!("m{n}"))), tokens: 0, buckets: vec![name(&format!("ur:{n}"))] });
        world.now += LIMIT_KEPT_TTL.as_micros() as u64 / 100;
    }
    assert!(world.table.buckets().count() < 1_100, "{}", world.table.buckets().count());
    assert_eq!(world.table.overflows(), 0);
}

/// A step of a random schedule.
#[derive(Clone, Debug)]
enum Step {
    Take {
        user: u8,
        turn: u8,
        tokens: u64,
    },
    Extend {
        user: u8,
        turn: u8,
        more: u64,
    },
    Settle {
        user: u8,
        turn: u8,
        used: u64,
    },
    Undo {
        user: u8,
        turn: u8,
        requests: bool,
    },
    Wait(u64),
    /// The clock is put back.
    Back(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..3_u8, 0..12_u8, 0..60_u64).prop_map(|(user, turn, tokens)| Step::Take { user, turn, tokens }),
        2 => (0..3_u8, 0..12_u8, 0..60_u64).prop_map(|(user, turn, more)| Step::Extend { user, turn, more }),
        3 => (0..3_u8, 0..12_u8, 0..90_u64).prop_map(|(user, turn, used)| Step::Settle { user, turn, used }),
        1 => (0..3_u8, 0..12_u8, any::<bool>()).prop_map(|(user, turn, requests)| Step::Undo { user, turn, requests }),
        3 => (0..3_000_000_u64).prop_map(Step::Wait),
        1 => (0..900_000_u64).prop_map(Step::Back),
    ];
    proptest::collection::vec(step, 1..120)
}

fn op(world: &World, step: &Step) -> Option<Op> {
    let mark = |user: &u8, turn: &u8| name(&format!("m{user}-{turn}"));
    Some(match step {
        Step::Take { user, turn, tokens } => take(&mark(user, turn), *tokens, &user.to_string()),
        Step::Extend { user, turn, more } => {
            let mark = mark(user, turn);
            let tokens = match world.table.mark(world.now, &mark) {
                Some(Mark::Reserved { tokens, .. }) => tokens + more,
                _ => *more,
            };
            Op::Extend { mark, tokens }
        }
        Step::Settle { user, turn, used } => Op::Settle { mark: mark(user, turn), used: *used },
        Step::Undo { user, turn, requests } => {
            let buckets = if *requests { vec![name("gr"), name(&format!("ur:{user}"))] } else { Vec::new() };
            Op::Undo { mark: mark(user, turn), buckets }
        }
        Step::Wait(_) | Step::Back(_) => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// What was spent and not given back is never above the burst and what came in while the clock moved on.
    #[test]
    fn never_more_than_the_burst_and_the_rate(steps in steps()) {
        let mut world = World::new(rules());
        let mut passed = 0_u64;
        let (mut requests, mut tokens) = (0_u64, 0_u64);
        for step in &steps {
            match step {
                Step::Wait(us) => {
                    world.now += us;
                    passed += us;
                }
                Step::Back(us) => world.now -= us,
                step => {
                    let op = op(&world, step).unwrap();
                    let before = match &op {
                        Op::Extend { mark, .. } => world.table.mark(world.now, mark).cloned(),
                        _ => None,
                    };
                    let outcome = world.run(&op);
                    match (&op, outcome.done) {
                        (Op::Take { tokens: taken, .. }, Done::Done) => {
                            requests += 1;
                            tokens += taken;
                        }
                        (Op::Extend { .. }, Done::Done) => {
                            let Some(Mark::Reserved { tokens: held, .. }) = before else { panic!("{op:?}") };
                            tokens += outcome.values[0] - held;
                        }
                        (Op::Settle { .. } | Op::Undo { .. }, Done::Done) => {
                            tokens -= outcome.values[0];
                            if let Op::Undo { buckets, .. } = &op {
                                requests -= u64::from(!buckets.is_empty());
                            }
                        }
                        _ => {}
                    }
                }
            }
            let most = |limit: Limit| limit.capacity() + passed * limit.per_minute;
            prop_assert!(requests * UNIT <= most(rules().0[0].limit), "{requests} requests");
            prop_assert!(tokens * UNIT <= most(rules().0[3].limit), "{tokens} tokens");
            for bucket in ["gr", "ur:0", "ut:1", "gt"] {
                let limit = rules().of(bucket).unwrap().limit;
                prop_assert!(world.level(bucket) <= limit.capacity());
            }
        }
    }

    /// While nothing comes in, what is in a bucket and what requests hold of it are always the same sum, as far as nothing is used.
    #[test]
    fn nothing_is_made_or_lost_while_time_stands_still(steps in steps()) {
        let mut world = World::new(rules());
        let mut used = 0_u64;
        for step in &steps {
            let Some(op) = op(&world, step) else { continue };
            let held = match &op {
                Op::Settle { mark, .. } => world.table.mark(world.now, mark).cloned(),
                _ => None,
            };
            let outcome = world.run(&op);
            if let (Op::Settle { .. }, Done::Done, Some(Mark::Reserved { tokens, .. })) = (&op, outcome.done, held) {
                used += tokens - outcome.values[0];
            }
            let mut held = 0;
            for user in 0..3 {
                for turn in 0..12 {
                    if let Some(Mark::Reserved { tokens, .. }) = world.table.mark(world.now, &format!("m{user}-{turn}")) {
                        held += tokens;
                    }
                }
            }
            prop_assert_eq!(world.level("gt") + (held + used) * UNIT, 150 * UNIT);
        }
    }

    /// Each step twice is the same as once.
    #[test]
    fn twice_is_once(steps in steps()) {
        let (mut once, mut twice) = (World::new(rules()), World::new(rules()));
        for step in &steps {
            match step {
                Step::Wait(us) => {
                    once.now += us;
                    twice.now += us;
                }
                Step::Back(us) => {
                    once.now -= us;
                    twice.now -= us;
                }
                step => {
                    let op = op(&once, step).unwrap();
                    let (first, second) = (once.run(&op), twice.run(&op));
                    prop_assert_eq!(first, second);
                    twice.run(&op);
                }
            }
            for bucket in ["gr", "ur:0", "ur:1", "ut:0", "ut:2", "gt"] {
                prop_assert_eq!(once.level(bucket), twice.level(bucket), "{} after {:?}", bucket, step);
            }
        }
    }
}
