//! What an edit does to a gateway that runs.

use std::fmt;

use chatgateway_config::{ConfigErrors, needs_restart};
use serde_json::Value;

use crate::plan::objects::{Observed, Planned, Release, plan};
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
        let (before, after) = (objects(old)?, objects(new)?);
        let settings = [&before, &after].map(|planned| &planned.rendered.settings);
        let mut roll: Vec<_> = needs_restart(settings[0], settings[1]).into_iter().map(named).collect();
        let (was, is) = (old.spec(), new.spec());
        let parts = [
            ("spec.image", was.image != is.image),
            ("spec.pod", was.pod != is.pod),
            ("spec.overrides.Deployment", was.overrides.get("Deployment") != is.overrides.get("Deployment")),
            // A pod's time for its drain is given to it when it is made.
            ("spec.drain", was.drain != is.drain),
            ("the Secrets", old.secrets() != new.secrets()),
        ];
        let template = template(&before) != template(&after);
        if template {
            roll.extend(parts.into_iter().filter(|(_, differs)| *differs).map(|(name, _)| name.to_owned()));
        }
        if template && roll.is_empty() {
            roll.push("the pod template".to_owned());
        }
        let (from, to) = (old.replicas(), new.replicas());
        Ok(Self { config: settings[0].hash != settings[1].hash, roll, scale: (from != to).then_some((from, to)) })
    }
}

fn objects(gateway: &Validated) -> Result<Planned, ConfigErrors> {
    plan(gateway, &Observed::default(), &Release::default())
}

/// What pods are made from.
fn template(planned: &Planned) -> Option<&Value> {
    let deployment = planned.objects.iter().find(|object| object.kind == "Deployment")?;
    Some(&deployment.value["spec"]["template"])
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
