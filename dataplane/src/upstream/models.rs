//! The models that the upstreams offer.

use chatgateway_config::UpstreamKind;

use super::Upstreams;

/// A model that clients may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedModel {
    /// Its name.
    pub id: String,
    /// The upstream that has it.
    pub upstream: String,
}

impl Upstreams {
    /// The models, in the upstreams' order. What has no models goes by the upstream's name.
    #[must_use]
    pub fn models(&self) -> Vec<OfferedModel> {
        let offered = self.list.iter().map(|upstream| {
            let id = match &upstream.settings.kind {
                UpstreamKind::OpenAi { model, .. } => model.clone(),
                UpstreamKind::Simple { .. } | UpstreamKind::Demo { .. } => upstream.settings.name.clone(),
            };
            OfferedModel { id, upstream: upstream.settings.name.clone() }
        });
        offered.collect()
    }
}
