//! Which upstream serves which model.

use std::sync::Arc;

use chatgateway_core::error::{ErrorCode, Refusal};

use super::{Kind, Upstream, Upstreams, failure::excerpt};

/// A model that clients may name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfferedModel {
    /// Its name.
    pub id: String,
    /// The upstream that has it; the first one, where several have it.
    pub upstream: String,
}

/// How a stateless request for a model is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// It passes through: [`Upstreams::forward`].
    Forward,
    /// The gateway asks and writes the answer itself: [`Upstreams::ask`].
    Ask,
}

impl Upstreams {
    /// The models, each once, in the upstreams' order. What has no models goes by the upstream's name.
    #[must_use]
    pub fn models(&self) -> Vec<OfferedModel> {
        let mut models: Vec<OfferedModel> = Vec::new();
        for upstream in &self.list {
            if models.iter().all(|model| model.id != upstream.model()) {
                let upstream = (upstream.model().to_owned(), upstream.settings.name.clone());
                models.push(OfferedModel { id: upstream.0, upstream: upstream.1 });
            }
        }
        models
    }

    /// How a stateless request for `model` is answered.
    ///
    /// # Errors
    /// `not_found` for a model that no upstream has, where upstreams name their models.
    pub fn route(&self, model: Option<&str>) -> Result<Route, Refusal> {
        let candidates = self.candidates(model)?;
        let first = candidates.first().map(|upstream| &upstream.kind);
        Ok(if matches!(first, Some(Kind::OpenAi { .. })) { Route::Forward } else { Route::Ask })
    }

    /// Those that serve a model, the preferred one first. A model that a client names is never silently another one,
    /// except where no upstream names its models.
    pub(super) fn candidates(&self, model: Option<&str>) -> Result<Vec<Arc<Upstream>>, Refusal> {
        let Some(model) = model.filter(|model| !model.is_empty()) else { return Ok(self.list.clone()) };
        let named: Vec<_> = self.list.iter().filter(|upstream| upstream.model() == model).cloned().collect();
        if !named.is_empty() {
            return Ok(named);
        }
        if !self.list.iter().any(|upstream| matches!(upstream.kind, Kind::OpenAi { .. })) {
            return Ok(self.list.clone());
        }
        let known: Vec<_> = self.models().into_iter().map(|model| model.id).collect();
        let message = format!("there is no model {:?}; there are: {}", excerpt(model), excerpt(&known.join(", ")));
        Err(Refusal::new(ErrorCode::NotFound, message))
    }
}

impl Upstream {
    /// The name under which clients ask for it.
    fn model(&self) -> &str {
        match &self.kind {
            Kind::OpenAi { model, .. } => model,
            Kind::Demo { .. } | Kind::Simple { .. } => &self.settings.name,
        }
    }
}
