//! Texts held against what the model says, and the history and snapshots against the log.

use std::sync::Arc;

use chatgateway_core::log::EntryId;

use super::{
    Check, Ending, Kept, Record,
    check::{Expected, Findings, Placed},
    prompt::{answer, foreign_word},
    sessions::{Log, LogTurn, Requests},
};

/// Checks every text of a session.
pub(super) fn check(
    placed: &Placed<'_>,
    log: &Log<'_>,
    requests: &Requests<'_>,
    expected: &Expected,
    findings: &mut Findings<'_>,
) {
    for turn in &log.turns {
        let ids: Vec<EntryId> = [Some(turn.start), turn.end].into_iter().flatten().map(|n| log.entries[n].id).collect();
        check_text(turn.turn, (turn.text, &turn.answer, turn.ending), &ids, log.place, findings);
        for void in &turn.void {
            check_text(turn.turn, (turn.text, void, None), &ids, log.place, findings);
        }
    }
    for (place, record) in placed {
        match record {
            Record::Answer { turn, text, ending, .. } => {
                let Some(prompt) = requests.text(turn) else { continue };
                check_text(turn, (prompt, text, *ending), &[], *place, findings);
                let logged = log.turn(turn);
                let same = logged.is_none_or(|logged| ending.is_none() || logged.ending == *ending);
                let kept = ending.is_none_or(|ending| ending == Ending::Failed)
                    || logged.is_some_and(|logged| logged.answer == **text);
                if !same || !kept {
                    let what = format!(
                        "its client was told {ending:?} with {} bytes, the log says {:?} with {:?} bytes",
                        text.len(),
                        logged.and_then(|logged| logged.ending),
                        logged.map(|logged| logged.answer.len())
                    );
                    findings.add(Check::Answer, Some(turn), &[], &[*place, log.place], what);
                }
            }
            Record::Snapshot { position, turns, .. } => {
                check_kept(*place, *position, turns, log, findings);
            }
            Record::FinalHistory { position, turns, .. } => {
                let end = log.entries.last().map_or(EntryId::ZERO, |entry| entry.id);
                if *position != end && expected.store_keeps {
                    let what = format!("the history of an idle session stands at {position}, its log ends with {end}");
                    findings.add(Check::Kept, None, &[*position, end], &[*place, log.place], what);
                }
                check_kept(*place, end, turns, log, findings);
            }
            _ => {}
        }
    }
}

/// A text is what the model says to the prompt: all of it where the turn is done, else its beginning.
fn check_text(
    turn: &Arc<str>,
    (prompt, text, ending): (&str, &str, Option<Ending>),
    ids: &[EntryId],
    place: usize,
    findings: &mut Findings<'_>,
) {
    let whole = answer(prompt);
    let right = if ending == Some(Ending::Done) { text == whole } else { whole.starts_with(text) };
    if right {
        return;
    }
    let session = whole.split('.').next().unwrap_or_default();
    if let Some(word) = foreign_word(text, session) {
        let what = format!("an answer to session {session} says {word:?}");
        findings.add(Check::Foreign, Some(turn), ids, &[place], what);
    }
    let common = whole.bytes().zip(text.bytes()).take_while(|(a, b)| a == b).count();
    // Texts of these prompts are plain ASCII; what is not is shown as far as it is.
    let around = |text: &str| {
        let bytes = text.as_bytes();
        let range = common.saturating_sub(12).min(bytes.len())..common.saturating_add(24).min(bytes.len());
        String::from_utf8_lossy(&bytes[range]).into_owned()
    };
    let what = format!(
        "{} of {} bytes; from byte {common} on it should go on {:?} and goes on {:?}",
        text.len(),
        whole.len(),
        around(whole),
        around(text),
    );
    findings.add(Check::Answer, Some(turn), ids, &[place], what);
}

/// A history at a position: every turn that ended up to there, as the log has it. Failed ones may be left out.
fn check_kept(place: usize, position: EntryId, turns: &[Kept], log: &Log<'_>, findings: &mut Findings<'_>) {
    let records = [place, log.place];
    for kept in turns {
        let Some(logged) = log.turn(&kept.turn) else {
            findings.add(Check::Kept, Some(&kept.turn), &[], &records, "it is in the history and not in the log");
            continue;
        };
        let (what, said, right) = if kept.seq != logged.seq {
            ("seq", kept.seq.to_string(), logged.seq.to_string())
        } else if *kept.text != *logged.text {
            ("text", kept.text.to_string(), logged.text.to_owned())
        } else if kept.ending.is_some() && kept.ending != logged.ending {
            ("end", format!("{:?}", kept.ending), format!("{:?}", logged.ending))
        } else if !answer_kept(kept, logged) {
            ("answer", kept.answer.to_string(), logged.answer.clone())
        } else {
            continue;
        };
        let what = format!("its {what} in the history is {said:?}, in the log {right:?}");
        findings.add(Check::Kept, Some(&kept.turn), &[], &records, what);
    }
    let seqs = turns.windows(2).all(|pair| pair[0].seq < pair[1].seq);
    if !seqs {
        findings.add(Check::Kept, None, &[], &records, "the history's turns are not in their order");
    }
    let length = log.length_at(position).unwrap_or(0);
    let ended = |turn: &&LogTurn<'_>| turn.end.is_some_and(|end| end < length) && turn.ending != Some(Ending::Failed);
    for turn in log.turns.iter().filter(ended) {
        if !turns.iter().any(|kept| kept.turn == *turn.turn && kept.ending.is_some()) {
            let what = "it has ended in the log and is not in the history";
            findings.add(Check::Kept, Some(turn.turn), &[], &records, what);
        }
    }
}

fn answer_kept(kept: &Kept, logged: &LogTurn<'_>) -> bool {
    match kept.ending {
        Some(Ending::Done | Ending::Cancelled) => *kept.answer == *logged.answer,
        // A turn that runs or failed has no answer in the history.
        Some(Ending::Failed) | None => kept.answer.is_empty(),
    }
}
