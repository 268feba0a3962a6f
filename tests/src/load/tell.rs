//! What a run came to, for people.

use std::{path::Path, sync::Arc};

use crate::history::{Report, Stamped, Violation};

/// Violations that are explained; all are counted.
const EXPLAINED_MAX: usize = 12;

/// Prints what was found; true where nothing is wrong. What is wrong is also written into the directory.
///
/// # Errors
/// Where that cannot be written.
pub fn tell(report: &Report, records: &[Stamped], problems: &[String], directory: &Path) -> anyhow::Result<bool> {
    println!("{}", report.figures);
    for problem in problems {
        println!("\nPROBLEM: {problem}");
    }
    if report.violations.is_empty() {
        return Ok(problems.is_empty());
    }
    let counts: Vec<String> = report.by_check().iter().map(|(check, count)| format!("{check:?} {count}")).collect();
    println!("\n{} VIOLATIONS: {}", report.violations.len(), counts.join(", "));
    for violation in report.violations.iter().take(EXPLAINED_MAX) {
        println!("\n{}", violation.explain(records));
    }
    write_sessions(&report.violations, records, directory)?;
    println!("\nlogs, all violations and the records of their sessions: {}", directory.display());
    Ok(false)
}

/// Everything about the sessions that have violations, a file each.
fn write_sessions(violations: &[Violation], records: &[Stamped], directory: &Path) -> anyhow::Result<()> {
    let all: String = violations.iter().map(|violation| format!("{}\n\n", violation.explain(records))).collect();
    std::fs::write(directory.join("violations.txt"), all)?;
    let mut sessions: Vec<&Arc<str>> = violations.iter().map(|violation| &violation.session).collect();
    sessions.sort_unstable();
    sessions.dedup();
    for session in sessions {
        let of_session = records.iter().enumerate().filter(|(_, stamped)| stamped.record.session() == Some(session));
        let text: String = of_session.map(|(place, stamped)| format!("#{place} {stamped}\n")).collect();
        std::fs::write(directory.join(format!("session-{session}.txt")), text)?;
    }
    Ok(())
}
