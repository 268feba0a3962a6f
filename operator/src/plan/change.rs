//! What an edit does to a gateway that runs.

use std::fmt;

use chatgateway_config::{ConfigErrors, needs_restart};

use crate::plan::config::{Place, render};
use crate::validate::Validated;

/// What an edit does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// The configuration differs. Running processes take it over, unless they must be replaced.
    pub config: bool,
    /// Why every process must be replaced, if it must: the fields that differ.
    pub roll: Vec<String>,
    /// The number of replicas before and after, if it differs.
    pub scale: Option<(usize, usize)>,
}

impl Change {
    /// What leads from one gateway to another in a cluster.
    ///
    /// # Errors
    /// Where one of them cannot be rendered.
    pub fn between(old: &Validated, new: &Validated) -> Result<Self, ConfigErrors> {
        let place = Place::cluster();
        let (before, after) = (render(old, &place)?.settings, render(new, &place)?.settings);
        let mut roll: Vec<_> = needs_restart(&before, &after).into_iter().map(named).collect();
        if old.spec().image != new.spec().image {
            roll.push("spec.image".to_owned());
        }
        if old.spec().pod != new.spec().pod {
            roll.push("spec.pod".to_owned());
        }
        if old.spec().overrides.get("Deployment") != new.spec().overrides.get("Deployment") {
            roll.push("spec.overrides.Deployment".to_owned());
        }
        let (from, to) = (old.replicas(), new.replicas());
        Ok(Self { config: before.hash != after.hash, roll, scale: (from != to).then_some((from, to)) })
    }
}

/// The name of a configuration field in the resource.
fn named(field: &str) -> String {
    if field == "gateway.name" { "metadata.name".to_owned() } else { format!("spec.{field}") }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((from, to)) = self.scale {
            let how = if to < from { "; those that go are drained" } else { "" };
            writeln!(f, "scales: from {from} to {to} replicas{how}")?;
        }
        if !self.roll.is_empty() {
            write!(f, "rolls: every process is replaced and drained, since {} changed", self.roll.join(", "))
        } else if self.config {
            f.write_str("reloads: running processes take the new configuration over, nothing is restarted")
        } else {
            f.write_str("no change of what the processes run")
        }
    }
}
