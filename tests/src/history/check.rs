//! The checker: sorts records by session, and holds each session's against its log.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use chatgateway_core::log::EntryId;

use super::{
    Check, Ending, Record, Stamped, Violation, answers,
    prompt::{answer, session_of},
    sessions::{Log, Requests},
    views,
};

/// What the run allowed to happen.
#[derive(Clone, Debug)]
pub struct Expected {
    /// The store lost nothing, and nothing was trimmed: every position stays good.
    pub store_keeps: bool,
    /// Codes by which a request may be refused.
    pub refusals: Vec<&'static str>,
    /// Those of them after which nobody knows whether the turn was accepted.
    pub uncertain: Vec<&'static str>,
    /// Takeovers after which a turn may fail.
    pub takeovers_to_fail: usize,
    /// Longest time between two entries of a turn, ms.
    pub pause_max_ms: u64,
    /// Whether every call of the model was recorded.
    pub model_recorded: bool,
}

impl Default for Expected {
    fn default() -> Self {
        Self {
            store_keeps: true,
            refusals: vec!["session_busy", "overloaded", "draining", "store_unavailable"],
            // A request that waits for its answer is refused with these also after its turn was accepted.
            uncertain: vec!["draining", "store_unavailable"],
            takeovers_to_fail: 3,
            // A store that is away, then a lease, then the time in which nobody looks for ended leases.
            pause_max_ms: 30_000,
            model_recorded: true,
        }
    }
}

/// Counts of what was checked: a run in which nothing happened proves nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Sessions with records.
    pub sessions: usize,
    /// Views of clients.
    pub views: usize,
    /// Turns in the logs.
    pub turns: usize,
    /// Those that are done.
    pub done: usize,
    /// Those that were cancelled.
    pub cancelled: usize,
    /// Those that failed.
    pub failed: usize,
    /// Entries in the logs.
    pub entries: usize,
    /// Entries told to views.
    pub told: usize,
    /// Takeovers in the logs.
    pub takeovers: usize,
    /// Resets in the logs.
    pub resets: usize,
    /// Longest time between two entries of a turn, as their first readers saw them, ms.
    pub longest_pause_ms: u64,
    /// Connections that views lost.
    pub lost_connections: usize,
    /// Resumes that went on.
    pub resumed: usize,
    /// Resumes that did not.
    pub not_recovered: usize,
    /// Turns sent again.
    pub repeats: usize,
    /// Requests that were refused.
    pub refused: usize,
    /// Calls of the model.
    pub model_calls: usize,
    /// Those that asked to continue.
    pub continued: usize,
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} sessions, {} turns ({} done, {} cancelled, {} failed), {} entries, {} takeovers, {} resets, \
             longest pause {:.1} s\n{} views were told {} entries, lost {} connections, resumed {} times ({} not recovered)\n{} repeated sends, {} \
             refusals, {} model calls ({} to continue)",
            self.sessions,
            self.turns,
            self.done,
            self.cancelled,
            self.failed,
            self.entries,
            self.takeovers,
            self.resets,
            self.longest_pause_ms as f64 / 1_000.0,
            self.views,
            self.told,
            self.lost_connections,
            self.resumed,
            self.not_recovered,
            self.repeats,
            self.refused,
            self.model_calls,
            self.continued,
        )
    }
}

/// What the checker found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// What must not be.
    pub violations: Vec<Violation>,
    /// How much was checked.
    pub figures: Figures,
}

impl Report {
    /// The checks that found something, and how often.
    pub fn by_check(&self) -> BTreeMap<Check, usize> {
        let mut counts = BTreeMap::new();
        for violation in &self.violations {
            *counts.entry(violation.check).or_default() += 1;
        }
        counts
    }
}

/// What is found in one session.
pub(super) struct Findings<'a> {
    session: &'a Arc<str>,
    violations: &'a mut Vec<Violation>,
}

impl Findings<'_> {
    pub(super) fn add(
        &mut self,
        check: Check,
        turn: Option<&Arc<str>>,
        ids: &[EntryId],
        records: &[usize],
        what: impl Into<String>,
    ) {
        self.violations.push(Violation {
            check,
            session: self.session.clone(),
            turn: turn.cloned(),
            ids: ids.to_vec(),
            what: what.into(),
            records: records.to_vec(),
        });
    }
}

/// Records with their places.
pub(super) type Placed<'a> = Vec<(usize, &'a Record)>;

/// Checks a whole history.
pub fn check(records: &[Stamped], expected: &Expected) -> Report {
    let mut sessions: BTreeMap<Arc<str>, Placed<'_>> = BTreeMap::new();
    let mut asked: HashMap<&str, Vec<(usize, &str)>> = HashMap::new();
    let mut report = Report::default();
    for (place, stamped) in records.iter().enumerate() {
        match (&stamped.record, stamped.record.session()) {
            (Record::Asked { text, prefix }, _) => {
                report.figures.model_calls += 1;
                report.figures.continued += usize::from(!prefix.is_empty());
                asked.entry(text).or_default().push((place, prefix));
            }
            (record, Some(session)) => sessions.entry(session.clone()).or_default().push((place, record)),
            (_, None) => {}
        }
    }
    report.figures.sessions = sessions.len();
    for (session, placed) in &sessions {
        check_session(session, placed, records, &asked, expected, &mut report);
    }
    for (text, calls) in asked {
        let session: Arc<str> = session_of(text).unwrap_or_default().into();
        if !sessions.contains_key(&session) {
            let mut findings = Findings { session: &session, violations: &mut report.violations };
            let places: Vec<usize> = calls.iter().map(|call| call.0).collect();
            findings.add(Check::Model, None, &[], &places, "the model was asked what nobody sent");
        }
    }
    report
}

fn check_session(
    session: &Arc<str>,
    placed: &Placed<'_>,
    records: &[Stamped],
    asked: &HashMap<&str, Vec<(usize, &str)>>,
    expected: &Expected,
    report: &mut Report,
) {
    count(placed, &mut report.figures);
    let mut findings = Findings { session, violations: &mut report.violations };
    let mut logs = placed.iter().filter_map(|(place, record)| match record {
        Record::FinalLog { entries, .. } => Some((*place, entries.as_slice())),
        _ => None,
    });
    let Some((place, entries)) = logs.next() else {
        let last: Vec<usize> = placed.last().map(|(place, _)| *place).into_iter().collect();
        findings.add(Check::Unread, None, &[], &last, "its log was not read at the end");
        return;
    };
    let log = Log::read(session, place, entries, &mut findings);
    for (other_place, other) in logs {
        if other != entries {
            let ids: Vec<EntryId> =
                other.iter().zip(entries).find(|(a, b)| a != b).map(|(a, _)| a.id).into_iter().collect();
            findings.add(Check::Content, None, &ids, &[place, other_place], "two full reads of the log differ");
        }
    }
    let requests = Requests::of(placed);
    requests.check(&log, expected, &mut findings);
    views::check(placed, &log, expected, &mut findings);
    answers::check(placed, &log, &requests, expected, &mut findings);
    if expected.model_recorded {
        check_calls(&log, asked, &mut findings);
    }
    let pause = views::check_pauses(placed, records, &log, expected, &mut findings);
    let figures = &mut report.figures;
    figures.longest_pause_ms = figures.longest_pause_ms.max(pause);
    figures.turns += log.turns.len();
    figures.entries += entries.len();
    for turn in &log.turns {
        figures.takeovers += turn.takeovers;
        figures.resets += turn.void.len();
        match turn.ending {
            Some(Ending::Done) => figures.done += 1,
            Some(Ending::Cancelled) => figures.cancelled += 1,
            Some(Ending::Failed) => figures.failed += 1,
            None => {}
        }
    }
}

fn count(placed: &Placed<'_>, figures: &mut Figures) {
    let mut views: Vec<u32> = Vec::new();
    for (_, record) in placed {
        match record {
            Record::Sent { attempt, .. } => figures.repeats += usize::from(*attempt > 1),
            Record::Receipt { outcome: super::Outcome::Refused(_), .. } => figures.refused += 1,
            Record::Seen { view, .. } => {
                figures.told += 1;
                views.push(*view);
            }
            Record::Lost { .. } => figures.lost_connections += 1,
            Record::Resumed { recovered: true, .. } => figures.resumed += 1,
            Record::Resumed { recovered: false, .. } => figures.not_recovered += 1,
            _ => {}
        }
    }
    views.sort_unstable();
    views.dedup();
    figures.views += views.len();
}

/// The model is asked once for each ownership of a turn, and to continue only what it would have said.
fn check_calls(log: &Log<'_>, asked: &HashMap<&str, Vec<(usize, &str)>>, findings: &mut Findings<'_>) {
    for turn in &log.turns {
        let prompt = answer(turn.text);
        let calls = asked.get(prompt).map(Vec::as_slice).unwrap_or_default();
        let places: Vec<usize> = calls.iter().map(|call| call.0).collect();
        if calls.len() > 1 + turn.takeovers {
            let what = format!("the model was asked {} times, with {} takeovers", calls.len(), turn.takeovers);
            findings.add(Check::Model, Some(turn.turn), &[], &places, what);
        }
        if calls.is_empty() && turn.ending == Some(Ending::Done) {
            findings.add(Check::Model, Some(turn.turn), &[], &[log.place], "it is done, and the model was never asked");
        }
        for (place, prefix) in calls {
            if !prompt.starts_with(prefix) {
                let what = format!("the model was asked to continue {prefix:?}, which it never says");
                findings.add(Check::Model, Some(turn.turn), &[], &[*place], what);
            }
        }
    }
}
