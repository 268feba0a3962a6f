//! What happens to operators, and must change nothing of what comes of gateways. Each has a namespace, an operator and a way to the
//! API server of its own.

mod course;
mod crash;
mod network;

use super::scenarios::Scenario;

/// The storm's dice: another number is another storm.
const SEED: u64 = 20_26;

/// All of them, by the names of their namespaces. The longest come first.
pub fn all() -> Vec<(&'static str, Scenario)> {
    vec![
        ("away", |ns| Box::pin(network::away(ns))),
        ("killed-before", |ns| Box::pin(crash::at_every_write(ns, false))),
        ("killed-after", |ns| Box::pin(crash::at_every_write(ns, true))),
        ("storm", |ns| Box::pin(network::storm(ns, SEED))),
        ("refused", |ns| Box::pin(network::refused(ns))),
        ("cut-off", |ns| Box::pin(network::cut_off(ns))),
        ("watches", |ns| Box::pin(network::watches(ns))),
        ("upgrades", |ns| Box::pin(super::pods::upgrades(ns))),
        ("silence", |ns| Box::pin(network::silence(ns))),
    ]
}
