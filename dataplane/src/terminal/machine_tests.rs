use super::*;

const JITTER: f64 = 0.5;

fn machine(live: bool, interactive: bool) -> Machine {
    let patience_ms = (!interactive).then_some(30_000);
    Machine::new(Settings { session: "s".to_owned(), live, interactive, patience_ms }, 0)
}

/// Feeds frames as a server writes them.
fn hear(machine: &mut Machine, frame: &str) -> Effects {
    let heard = serde_json::from_str(frame).unwrap_or_else(|e| panic!("{frame}: {e}"));
    machine.handle(Event::Heard(heard), 1_000, JITTER)
}

fn hello(machine: &mut Machine) -> Effects {
    hear(
        machine,
        r#"{"type":"hello","protocol":"chatgateway.v1","revision":"r","ping_interval_ms":1,"max_message_bytes":200}"#,
    )
}

fn line(machine: &mut Machine, turn: &str) -> Effects {
    machine.handle(Event::Line { turn: turn.to_owned(), text: format!("text of {turn}") }, 1_000, JITTER)
}

fn entry(machine: &mut Machine, kind: &str, turn: &str, id: &str, more: &str) -> Effects {
    hear(machine, &format!(r#"{{"type":"{kind}","session":"s","turn":"{turn}","id":"{id}"{more}}}"#))
}

fn begin(machine: &mut Machine, turn: &str, id: &str, seq: u64) -> Effects {
    entry(machine, "turn", turn, id, &format!(r#","seq":{seq},"text":"said by {turn}""#))
}

fn delta(machine: &mut Machine, turn: &str, id: &str, text: &str) -> Effects {
    entry(machine, "delta", turn, id, &format!(r#","text":"{text}""#))
}

fn done(machine: &mut Machine, turn: &str, id: &str) -> Effects {
    entry(machine, "done", turn, id, r#","finish_reason":"stop","usage":{}"#)
}

fn accepted(machine: &mut Machine, turn: &str, seq: u64) -> Effects {
    let frame = format!(
        r#"{{"type":"accepted","session":"s","turn":"{turn}","seq":{seq},"state":"running","duplicate":false}}"#
    );
    hear(machine, &frame)
}

fn resumed(machine: &mut Machine, recovered: bool) -> Effects {
    hear(machine, &format!(r#"{{"type":"resumed","session":"s","recovered":{recovered},"position":"0"}}"#))
}

fn lost(machine: &mut Machine, code: Option<u16>) -> Effects {
    machine.handle(Event::Lost { code, reason: "gone".to_owned(), lived_ms: 10_000 }, 2_000, JITTER)
}

/// The frames that are sent, without what is said to the user.
fn sent(effects: &Effects) -> Vec<&str> {
    effects.iter().filter_map(|e| if let Effect::Send(frame) = e { Some(frame.as_str()) } else { None }).collect()
}

fn printed(effects: &Effects) -> String {
    effects.iter().filter_map(|e| if let Effect::Print(text) = e { Some(text.as_str()) } else { None }).collect()
}

fn said(effects: &Effects, words: &str) -> bool {
    effects.iter().any(|e| matches!(e, Effect::Say(said) if said.contains(words)))
}

fn redial_ms(effects: &Effects) -> Option<u64> {
    effects.iter().find_map(|e| if let Effect::Redial(ms) = e { Some(*ms) } else { None })
}

fn asks(effects: &Effects) -> bool {
    effects.contains(&Effect::Ask)
}

const SEND_A: &str = r#"{"type":"send","session":"s","turn":"a","text":"text of a"}"#;
const CANCEL_A: &str = r#"{"type":"cancel","session":"s","turn":"a"}"#;

/// A machine in the middle of the answer to turn `a`: printed "one ".
fn in_the_middle(live: bool) -> Machine {
    let mut m = machine(live, true);
    assert!(asks(&hello(&mut m)));
    assert_eq!(sent(&line(&mut m, "a")), [SEND_A]);
    accepted(&mut m, "a", 1);
    begin(&mut m, "a", "5-0", 1);
    assert_eq!(printed(&delta(&mut m, "a", "5-1", "one ")), if live { "one " } else { "" });
    m
}

#[test]
fn an_answer_streams_and_then_the_next_line_is_asked_for() {
    let mut m = in_the_middle(true);
    assert_eq!(printed(&delta(&mut m, "a", "5-2", "two")), "two");
    let end = done(&mut m, "a", "5-3");
    assert_eq!(printed(&end), "\n");
    assert!(asks(&end));
}

#[test]
fn into_a_file_an_answer_goes_whole() {
    let mut m = in_the_middle(false);
    entry(&mut m, "reset", "a", "5-2", "");
    assert_eq!(printed(&delta(&mut m, "a", "5-3", "anew")), "");
    assert_eq!(printed(&done(&mut m, "a", "5-4")), "anew\n");
}

#[test]
fn after_a_reconnect_the_log_is_resumed_and_nothing_is_printed_twice() {
    let mut m = in_the_middle(true);
    assert!(said(&lost(&mut m, Some(1012)), "connecting again"));
    assert_eq!(sent(&hello(&mut m)), [r#"{"type":"resume","session":"s","after":"5-1"}"#]);
    assert_eq!(printed(&delta(&mut m, "a", "5-2", "early")), "", "before the outcome of the resume nothing counts");
    assert_eq!(sent(&resumed(&mut m, true)), [""; 0], "the turn is in the log: it is not sent again");
    assert_eq!(printed(&delta(&mut m, "a", "5-1", "one ")), "");
    assert_eq!(printed(&delta(&mut m, "a", "5-2", "two")), "two");
    assert_eq!(printed(&delta(&mut m, "a", "5-2", "two")), "");
    assert_eq!(printed(&delta(&mut m, "a", "10-0", "!")), "!", "10 is above 5, though not as text");
}

#[test]
fn a_turn_without_an_entry_is_sent_again_under_its_id() {
    let mut m = machine(true, true);
    hello(&mut m);
    line(&mut m, "a");
    lost(&mut m, None);
    assert_eq!(sent(&hello(&mut m)), [SEND_A]);
    // Accepted, and the connection ends before the entry.
    accepted(&mut m, "a", 1);
    lost(&mut m, None);
    assert_eq!(sent(&hello(&mut m)), [SEND_A]);
}

#[test]
fn a_line_typed_while_offline_waits_for_the_resume() {
    let mut m = in_the_middle(true);
    done(&mut m, "a", "5-2");
    lost(&mut m, None);
    assert_eq!(sent(&line(&mut m, "b")), [""; 0]);
    assert_eq!(sent(&hello(&mut m)).len(), 1, "only the resume");
    assert_eq!(sent(&resumed(&mut m, true)), [r#"{"type":"send","session":"s","turn":"b","text":"text of b"}"#]);
}

#[test]
fn a_server_that_forgot_the_session_is_told_of_and_asked_again() {
    let mut m = in_the_middle(true);
    lost(&mut m, None);
    hello(&mut m);
    let effects = resumed(&mut m, false);
    assert!(said(&effects, "no longer has this conversation"));
    assert_eq!(sent(&effects), [SEND_A]);
    assert!(!said(&accepted(&mut m, "a", 1), "no longer"), "said once");
    // The new log may have lower ids.
    begin(&mut m, "a", "4-0", 1);
    assert_eq!(printed(&delta(&mut m, "a", "4-1", "one ")), "one ");
    assert_eq!(printed(&done(&mut m, "a", "4-2")), "\n");
}

#[test]
fn a_session_that_began_anew_unnoticed_is_told_of() {
    let mut m = in_the_middle(true);
    done(&mut m, "a", "5-2");
    line(&mut m, "b");
    assert!(said(&accepted(&mut m, "b", 1), "no longer has"));
}

#[test]
fn an_entry_may_come_before_its_receipt() {
    let mut m = machine(true, true);
    hello(&mut m);
    line(&mut m, "a");
    begin(&mut m, "a", "5-0", 1);
    assert!(!said(&accepted(&mut m, "a", 1), "no longer"));
    done(&mut m, "a", "5-1");
    line(&mut m, "b");
    assert!(said(&begin(&mut m, "b", "6-0", 1), "no longer"), "the number began anew");
    assert!(!said(&accepted(&mut m, "b", 1), "no longer"));
}

#[test]
fn an_answer_that_starts_over_is_told_of_where_it_was_shown() {
    let mut m = in_the_middle(true);
    assert!(said(&entry(&mut m, "takeover", "a", "6-0", ""), "another server"));
    let effects = entry(&mut m, "reset", "a", "6-1", "");
    assert_eq!(printed(&effects), "\n");
    assert!(said(&effects, "starts over"));
    assert_eq!(sent(&m.handle(Event::Interrupt, 1_000, JITTER)), [CANCEL_A], "it can still be stopped");
}

#[test]
fn ctrl_c_stops_the_answer_and_a_second_one_leaves() {
    let mut m = in_the_middle(true);
    assert_eq!(sent(&m.handle(Event::Interrupt, 1_000, JITTER)), [CANCEL_A]);
    assert!(matches!(m.handle(Event::Interrupt, 1_000, JITTER)[..], [Effect::Leave(Some(_))]));
    let effects = entry(&mut m, "cancelled", "a", "5-2", "");
    assert!(said(&effects, "stopped") && asks(&effects));
    assert_eq!(m.handle(Event::InputEnded, 1_000, JITTER), [Effect::Leave(None)]);
}

#[test]
fn a_wish_to_stop_waits_for_the_receipt_and_outlives_a_reconnect() {
    let mut m = machine(true, true);
    hello(&mut m);
    line(&mut m, "a");
    assert_eq!(sent(&m.handle(Event::Interrupt, 1_000, JITTER)), [""; 0]);
    assert_eq!(sent(&accepted(&mut m, "a", 1)), [CANCEL_A]);
    begin(&mut m, "a", "5-0", 1);
    lost(&mut m, None);
    hello(&mut m);
    assert_eq!(sent(&resumed(&mut m, true)), [CANCEL_A]);
}

#[test]
fn a_refusal_that_may_pass_is_tried_again_and_not_for_ever() {
    let mut m = machine(true, true);
    hello(&mut m);
    line(&mut m, "a");
    let refusal = r#"{"type":"error","code":"rate_limited","message":"slow down","retryable":true,"retry_after_ms":700,"session":"s","turn":"a"}"#;
    for _ in 0..RETRIES_MAX {
        assert!(hear(&mut m, refusal).contains(&Effect::RetryIn(700)));
        assert_eq!(sent(&m.handle(Event::RetryNow, 1_000, JITTER)), [SEND_A]);
    }
    let effects = hear(&mut m, refusal);
    assert!(said(&effects, "refused") && asks(&effects));
}

#[test]
fn a_final_refusal_is_said_and_is_an_error_of_a_pipe() {
    let mut m = machine(false, false);
    hello(&mut m);
    line(&mut m, "a");
    let refusal =
        r#"{"type":"error","code":"permission_denied","message":"no","retryable":false,"session":"s","turn":"a"}"#;
    assert!(asks(&hear(&mut m, refusal)));
    assert!(matches!(&m.handle(Event::InputEnded, 1_000, JITTER)[..], [Effect::Leave(Some(p))] if p.contains("no")));
}

#[test]
fn a_failed_turn_ends_with_its_reason() {
    let mut m = in_the_middle(true);
    let effects =
        entry(&mut m, "error", "a", "5-2", r#","code":"upstream_timeout","message":"too slow","retryable":false"#);
    assert_eq!(printed(&effects), "\n");
    assert!(said(&effects, "too slow") && asks(&effects));
}

#[test]
fn a_message_above_the_bound_is_not_sent() {
    let mut m = machine(true, true);
    hello(&mut m);
    let effects = m.handle(Event::Line { turn: "a".to_owned(), text: "x".repeat(300) }, 1_000, JITTER);
    assert!(sent(&effects).is_empty() && said(&effects, "longer than") && asks(&effects));
}

#[test]
fn a_server_that_goes_away_is_left_between_answers() {
    let go_away = r#"{"type":"go_away","reconnect_after_ms":1500,"time_left_ms":60000}"#;
    let mut m = in_the_middle(true);
    assert_eq!(redial_ms(&hear(&mut m, go_away)), None, "the answer goes on here");
    delta(&mut m, "a", "5-2", "two");
    let effects = done(&mut m, "a", "5-3");
    assert_eq!(redial_ms(&effects), Some(1_500));
    assert_eq!(sent(&line(&mut m, "b")), [""; 0]);
    hello(&mut m);
    assert_eq!(sent(&resumed(&mut m, true)).len(), 1);

    let mut m = machine(true, true);
    for _ in 0..5 {
        m.handle(Event::Lost { code: None, reason: "refused".to_owned(), lived_ms: 0 }, 0, 1.0);
    }
    hello(&mut m);
    hear(&mut m, go_away);
    let effects = m.handle(Event::Lost { code: None, reason: "refused".to_owned(), lived_ms: 0 }, 0, 1.0);
    assert_eq!(redial_ms(&effects), Some(1_500), "as the server asked");
    let effects = m.handle(Event::Lost { code: None, reason: "refused".to_owned(), lived_ms: 0 }, 0, 1.0);
    assert_eq!(redial_ms(&effects), Some(1_000), "waits are short again");

    let mut m = machine(true, true);
    hello(&mut m);
    assert_eq!(redial_ms(&hear(&mut m, go_away)), Some(1_500));
}

#[test]
fn a_turn_refused_by_a_leaving_server_goes_to_the_next() {
    let mut m = machine(true, true);
    hello(&mut m);
    line(&mut m, "a");
    let refusal = r#"{"type":"error","code":"draining","message":"leaving","retryable":true,"retry_after_ms":900,"session":"s","turn":"a"}"#;
    assert_eq!(redial_ms(&hear(&mut m, refusal)), Some(900));
    assert_eq!(sent(&hello(&mut m)), [SEND_A]);
}

#[test]
fn waits_grow_up_to_a_bound_and_a_pipe_gives_up() {
    let mut m = machine(true, true);
    let fail = |m: &mut Machine, now| {
        m.handle(Event::Lost { code: None, reason: "refused".to_owned(), lived_ms: 0 }, now, 1.0)
    };
    let waits: Vec<_> = (0..7).map(|_| redial_ms(&fail(&mut m, 0)).unwrap()).collect();
    assert_eq!(waits, [500, 1_000, 2_000, 4_000, 8_000, 15_000, 15_000]);
    let mut pipe = machine(false, false);
    assert!(redial_ms(&fail(&mut pipe, 1_000)).is_some());
    assert!(matches!(&fail(&mut pipe, 30_000)[..], [Effect::Leave(Some(_))]));
}

#[test]
fn a_server_that_turns_the_client_away_ends_it() {
    for (code, ends) in [(1008, true), (3500, true), (3999, true), (3008, false), (3012, false), (1013, false)] {
        let mut m = machine(true, true);
        hello(&mut m);
        let effects = lost(&mut m, Some(code));
        assert_eq!(matches!(effects[..], [Effect::Leave(Some(_))]), ends, "{code}");
    }
}

#[test]
fn turns_of_others_are_shown_when_they_are_complete() {
    let mut m = in_the_middle(true);
    done(&mut m, "a", "5-2");
    begin(&mut m, "z", "6-0", 2);
    assert_eq!(printed(&delta(&mut m, "z", "6-1", "answer for z")), "");
    let effects = done(&mut m, "z", "6-2");
    assert!(said(&effects, "said by z\nanswer for z"));
    assert!(!asks(&effects), "a line is asked for already");
}

#[test]
fn a_deleted_session_is_told_of_and_can_be_begun_anew() {
    let mut m = in_the_middle(true);
    let deleted = r#"{"type":"error","code":"not_found","message":"deleted","retryable":false,"session":"s"}"#;
    let effects = hear(&mut m, deleted);
    assert!(said(&effects, "deleted") && asks(&effects));
    assert_eq!(sent(&line(&mut m, "b")).len(), 1);
    assert!(!said(&accepted(&mut m, "b", 1), "no longer"));
}
