//! Models and rules made ready on the caller's thread, where they may fail and take long, for a worker to put in force.

use super::encode::{Engine, Site};
use super::events::Events;
use super::memory::Reserved;
use super::options::SiteOptions;
use super::requests::Prepared;
use super::rules::{Rules, SiteRules};
use super::shared::Core;
use super::site::{Model, RuleTable, Way, check_layer, check_rules_are_watched, lock};
use super::snapshot::ModelId;
use super::statistics::Statistics;
use crate::encode::{Encoder, EncoderOptions, Watch};
use crate::error::{Error, Result};
use crate::sae::Sae;
use std::sync::Arc;

/// Rules of a site with all their memory, to be put in force without a failure.
pub(super) struct ReadyRules {
    rules: Arc<SiteRules>,
    prepared: Prepared,
    memory: Reserved,
}

impl ReadyRules {
    /// # Errors
    /// [`Status::OutOfMemory`], the limit of memory included; the rules before are still counted in it.
    pub(super) fn new(core: &Core, site: &str, rules: Arc<SiteRules>) -> Result<Self> {
        let most = core.options.requests;
        let bytes = Prepared::bytes_for(&rules, most).saturating_add(latents_of_events(core, &rules));
        let memory = core.budget.reserve(bytes, &format!("the rules of site {site}"))?;
        let prepared = Prepared::new(Arc::clone(&rules), most)?;
        Ok(ReadyRules { rules, prepared, memory })
    }

    pub(super) fn install(self, site: &mut Site) {
        site.requests.install(self.prepared);
        site.rules_memory = self.memory;
        let table = Arc::new(RuleTable::new(&self.rules, &site.table));
        *lock(&site.shared.rules) = Arc::clone(&table);
        *lock(&site.shared.rule_latents) = self.rules.latents().into();
        site.table = table;
    }
}

/// Bytes of the latents of as many events as are kept, beyond those that are counted with the queue.
pub(super) fn latents_of_events(core: &Core, rules: &SiteRules) -> usize {
    Events::latents_bytes(core.options.events, rules.most_latents())
}

/// Each number once, where it stood first: a latent watched twice would be a series twice, which a scrape refuses.
pub(super) fn distinct(watch: &[u32]) -> Vec<u32> {
    let mut seen = std::collections::HashSet::new();
    watch.iter().copied().filter(|latent| seen.insert(*latent)).collect()
}

/// d_model of a new site.
pub(super) fn width(options: &SiteOptions, sae: Option<&Sae>) -> Result<usize> {
    match (sae.map(|sae| sae.config().d_model), options.d_model) {
        (Some(of_model), 0) => Ok(of_model),
        (Some(of_model), given) if of_model == given => Ok(given),
        (Some(of_model), given) => Err(Error::invalid(format!(
            "site {}: the model has d_model {of_model}, the site was given {given}",
            options.name
        ))),
        (None, 0) => Err(Error::invalid(format!("site {} has no model: it needs a d_model", options.name))),
        (None, _) if !options.watch.is_empty() => {
            Err(Error::invalid(format!("site {} has no model: there is nothing to watch", options.name)))
        }
        (None, given) => Ok(given),
    }
}

/// A model ready to be put in force. What takes long happens here, on the caller's thread: its hash, and what encoders
/// derive from its weights.
pub(super) fn prepare(
    core: &Core,
    site: &str,
    layer: Option<u32>,
    any_layer: bool,
    watch: &[u32],
    sae: Option<Arc<Sae>>,
) -> Result<Model> {
    let (way, rule) = Model::way(sae.as_deref(), watch);
    let Some(sae) = sae else {
        let memory = core.budget.reserve(0, "nothing")?;
        let id = ModelId([0; 8]);
        return Ok(Model { sae: None, id, way, rule, statistics: None, capacity: 0, _memory: memory });
    };
    check_layer(site, layer, any_layer, &sae)?;
    Model::check_watch(&sae, watch)?;
    let only = (way == Way::Watch).then(|| Box::<[u32]>::from(watch));
    let counted = only.as_ref().map_or(sae.config().encoder.latents(), |only| only.len());
    let capacity = only.as_ref().map_or(sae.config().selection.capacity(), |only| only.len());
    let engine = Engine::bytes(&sae, way, watch.len(), capacity, core.options.encoder_threads);
    let memory = core.budget.reserve(Statistics::bytes(counted).saturating_add(engine), &format!("site {site}"))?;
    let id = sae.model_id()?;
    // Made only to derive what its twin on the worker then finds; its own workspace goes at once.
    match &only {
        Some(only) => drop(Watch::new(Arc::clone(&sae), only)?),
        None => drop(Encoder::new(Arc::clone(&sae), EncoderOptions::default())?),
    }
    let statistics = Some(Statistics::new(Arc::clone(&sae), only, core.options.half_life_tokens)?);
    Ok(Model { sae: Some(sae), id, way, rule, statistics, capacity, _memory: memory })
}

/// Rules bound to a site and its model.
pub(super) fn compile(rules: &Rules, site: &str, model: &Model, watch: &[u32]) -> Result<SiteRules> {
    let Some(sae) = &model.sae else { return Ok(SiteRules::empty()) };
    let compiled = SiteRules::compile(rules, site, sae)?;
    check_rules_are_watched(site, model.way, watch, &compiled)?;
    Ok(compiled)
}
