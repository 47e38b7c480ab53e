//! Backends that come and go: by the configuration, by the control API, by discovery, and by the ranks of a server.

use super::backend::{self, Backend, BackendSettings, Origin};
use super::client::OUT_OF_REACH;
use super::core::Core;
use super::member::FleetMember;
use crate::config;
use crate::scheduler::{BackendId, PoolId};
use std::sync::Arc;

impl Core {
    /// Adds a backend, whose task starts later.
    ///
    /// # Errors
    /// See [`super::Fleet::add`].
    pub(super) fn insert(
        &self,
        pool: PoolId,
        config: &config::Backend,
        rank: Option<u32>,
        origin: Origin,
    ) -> Result<BackendId, String> {
        self.pools.get(pool).ok_or("no such pool")?;
        let sibling = |member: &&Arc<FleetMember>| member.backend.server() == backend::name(config);
        let page = self.registry.all().iter().find(sibling).map(|member| Arc::clone(&member.page)).unwrap_or_default();
        let member = self.registry.insert(
            |id| {
                let member = FleetMember::new(Backend::new(id, pool, config, rank, origin)?, page);
                let within = member.may_be_within(&self.reach.load());
                within.then_some(member).ok_or_else(|| format!("{}: {OUT_OF_REACH}", backend::name(config)))
            },
            |member| member.announce(&*self.sink),
        )?;
        let id = member.backend.id;
        self.rebuild_selection(pool);
        // Sending cannot fail: the receiver lives as long as `self`.
        let _ = self.newcomers.send(member);
        Ok(id)
    }

    /// Adds a backend that a configuration, or its server, names; a failure is logged.
    pub(super) fn insert_or_log(&self, pool: PoolId, config: &config::Backend, rank: Option<u32>, origin: Origin) {
        if let Err(reason) = self.insert(pool, config, rank, origin) {
            log::error!("backend left out: {reason}");
        }
    }

    /// The backends of a server that are to stay.
    fn of_server(&self, pool: PoolId, server: &str) -> Vec<Arc<FleetMember>> {
        let is_it = |member: &&Arc<FleetMember>| {
            member.backend.pool == pool && member.backend.server() == server && !member.is_draining()
        };
        self.registry.all().iter().filter(is_it).cloned().collect()
    }

    /// Replaces a server's backends by one for each of its `ranks`, if the pool wants ranks. `true` if the server had
    /// other backends before.
    pub(super) fn split(&self, pool: PoolId, server: &str, ranks: usize) -> bool {
        let _one_at_a_time = self.aligning.lock();
        let here = self.of_server(pool, server);
        let wanted = self.pools.get(pool).is_some_and(|pool| pool.ranks == config::Ranks::Auto);
        let (Some(first), Ok(url), true) = (here.first(), server.parse(), wanted) else { return false };
        let is_rank = |member: &FleetMember| member.backend.rank.is_some_and(|rank| (rank as usize) < ranks);
        if here.len() == ranks && here.iter().all(|member| is_rank(member)) {
            return false;
        }
        log::info!("backend {server} has {ranks} data-parallel ranks");
        let BackendSettings { api_key, weight, capacity_tokens, origin } = (**first.backend.settings()).clone();
        let config = config::Backend { url, api_key, weight, capacity_tokens };
        here.iter().filter(|member| !is_rank(member)).for_each(|member| member.start_draining(&*self.sink));
        for rank in 0..u32::try_from(ranks).unwrap_or(u32::MAX) {
            if !here.iter().any(|member| member.backend.rank == Some(rank)) {
                self.insert_or_log(pool, &config, Some(rank), origin);
            }
        }
        self.rebuild_selection(pool);
        true
    }

    /// Makes the pool's backends of this origin those of `wanted`. A backend that is there already keeps its state.
    pub(super) fn align(&self, pool: PoolId, wanted: &[config::Backend], origin: Origin) {
        let _one_at_a_time = self.aligning.lock();
        let is_wanted =
            |member: &FleetMember| wanted.iter().any(|config| backend::name(config) == member.backend.server());
        for member in self.registry.all().iter().filter(|member| member.backend.pool == pool && member.is_of(origin)) {
            if !is_wanted(member) {
                self.remove(member.backend.id);
            }
        }
        for config in wanted {
            let here = self.of_server(pool, backend::name(config));
            if here.is_empty() {
                self.insert_or_log(pool, config, None, origin);
            }
            // The configuration has the last word, so its backends are compared with those of every origin.
            for member in here.iter().filter(|member| origin == Origin::File || member.is_of(origin)) {
                member.configure(&*self.sink, BackendSettings::new(config, origin));
            }
        }
    }

    /// Drains a backend with all ranks of its server. `false` if no backend has this id.
    pub(super) fn remove(&self, id: BackendId) -> bool {
        let Some(gone) = self.registry.with(id, |member| Arc::clone(&member.backend)) else { return false };
        let beside = self.of_server(gone.pool, gone.server());
        beside.iter().for_each(|member| member.start_draining(&*self.sink));
        self.rebuild_selection(gone.pool);
        true
    }
}
