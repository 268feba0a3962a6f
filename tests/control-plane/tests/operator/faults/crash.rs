//! The operator is killed at every write, before it is done or before it is answered, and started again.
//!
//! Between two writes an operator keeps nothing that matters, so that reads need no kills of their own.

use std::os::unix::process::ExitStatusExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use chatgateway_control_plane::{Call, Fate, Operator, Script};
use nix::sys::signal::Signal;

use super::super::support::{Namespace, until};
use super::course::{Course, Step};

/// Lives that one step may take. Each gets one write further.
const LIVES_MAX: u64 = 60;

/// How long a killed process may take to be gone.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

/// Kills an operator at one of its writes.
struct Killer {
    operator: Arc<Operator>,
    /// Writes until then, that one included.
    left: AtomicU64,
    /// Whether that one is done.
    done: bool,
}

impl Killer {
    fn kill(&self) {
        // It may have ended already: then the test sees that.
        let _ = self.operator.process().signal(Signal::SIGKILL);
    }
}

impl Script for Killer {
    fn fate(&self, call: &Call) -> Fate {
        if !call.writes() {
            return Fate::Pass;
        }
        match self.left.fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(1))) {
            Ok(1) if self.done => Fate::Lose,
            Ok(1) => {
                self.kill();
                Fate::Cut
            }
            // Dead people write nothing.
            Ok(0) => Fate::Cut,
            _ => Fate::Pass,
        }
    }

    fn lost(&self, _: &Call) {
        self.kill();
    }
}

/// Each write in turn: in its first life an operator gets to its first one, in its second to the second one.
pub async fn at_every_write(ns: Namespace, done: bool) -> anyhow::Result<()> {
    let course = Course::begin(ns, false).await?;
    let reference = course.undisturbed().await?;
    let mut kills = 0;
    for (step, expected) in &reference {
        course.take(*step).await?;
        for life in 1.. {
            ensure!(life <= LIVES_MAX, "{step:?} does not come to an end");
            let operator = Arc::new(course.operator()?);
            course.proxy.follow(Killer { operator: operator.clone(), left: AtomicU64::new(life), done });
            let is_gone = || !operator.process().is_running();
            let what = || format!("{step:?}, life {life}");
            if course.becomes(expected, is_gone).await.with_context(what)? {
                break;
            }
            let status = operator.process().wait(KILL_TIMEOUT)?.context("it has not ended")?;
            ensure!(status.signal() == Some(Signal::SIGKILL as i32), "it ended by itself, with {status}");
            kills += 1;
        }
        course.proxy.follow(|_: &Call| Fate::Pass);
        if *step != Step::Delete {
            // One that begins anew finds nothing to change.
            let operator = course.operator()?;
            let looked =
                || async { operator.metric("chatgateway_operator_reconcile_total").is_ok_and(|done| done > 0) };
            until("a new operator has looked", looked).await?;
            ensure!(course.is(expected).await?, "after {step:?}, a new operator changes something");
        }
    }
    // Each step has more than one write.
    ensure!(kills > 2 * reference.len(), "killed only {kills} times");
    println!("        killed {kills} times");
    Ok(())
}
