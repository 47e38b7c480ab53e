//! The settings that cannot change while the server runs: sockets, and those that the ledgers are built on.

use super::mistake::Mistake;
use super::tree::Config;

/// Every difference that needs a new process. Paths are those of `new`.
#[must_use]
pub fn changes(running: &Config, new: &Config) -> Vec<Mistake> {
    let mut found = Vec::new();
    let mut fixed = |same: bool, path: String, what: &str| {
        if !same {
            let message = format!("{what} needs a new process: start it with --upgrade, which loses no request");
            found.push(Mistake::new(path, message));
        }
    };
    fixed(running.listeners == new.listeners, "listeners".into(), "a change of the listeners");
    let admin = |config: &Config| config.admin.as_ref().map(|admin| admin.listen);
    fixed(admin(running) == admin(new), "admin.listen".into(), "another admin listener");
    fixed(running.state.snapshot == new.state.snapshot, "state.snapshot".into(), "another file for the state");
    let idle = running.timeouts.client_idle == new.timeouts.client_idle;
    fixed(idle, "timeouts.client_idle".into(), "another time for idle connections");
    for (index, pool) in new.models.iter().enumerate() {
        let path = format!("models[{index}]");
        match running.models.iter().find(|known| known.name == pool.name) {
            None => fixed(false, path, "a new pool"),
            Some(known) => {
                fixed(known.engine == pool.engine, format!("{path}.engine"), "another engine");
                fixed(known.routing == pool.routing, format!("{path}.routing"), "another way of routing");
                fixed(known.ranks == pool.ranks, format!("{path}.ranks"), "another way with ranks");
            }
        }
    }
    for gone in running.models.iter().filter(|known| new.models.iter().all(|pool| pool.name != known.name)) {
        fixed(false, "models".into(), &format!("to take the pool `{}` away", gone.name));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Admin, Engine, Pool, Ranks, Routing};

    fn paths(change: impl FnOnce(&mut Config)) -> Vec<String> {
        let pool = |name: &str| Pool { name: name.into(), ..Pool::default() };
        let running = Config { models: vec![pool("a"), pool("b")], ..Config::default() };
        let mut new = running.clone();
        change(&mut new);
        changes(&running, &new).into_iter().map(|mistake| mistake.path).collect()
    }

    #[test]
    fn sockets_pools_engines_and_routing_need_a_new_process() {
        assert_eq!(paths(|new| new.listeners.clear()), ["listeners"]);
        assert_eq!(paths(|new| new.admin = Some(Admin::default())), ["admin.listen"]);
        assert_eq!(paths(|new| new.state.snapshot = Some("state".into())), ["state.snapshot"]);
        assert_eq!(paths(|new| new.timeouts.client_idle *= 2), ["timeouts.client_idle"]);
        assert_eq!(paths(|new| new.models[1].name = "c".into()), ["models[1]", "models"]);
        assert_eq!(paths(|new| new.models[1].engine = Engine::Sglang), ["models[1].engine"]);
        assert_eq!(paths(|new| new.models[0].routing = Routing::RoundRobin), ["models[0].routing"]);
        assert_eq!(paths(|new| new.models[0].ranks = Ranks::Off), ["models[0].ranks"]);
    }

    #[test]
    fn all_else_and_the_order_of_pools_may_change() {
        let changed = paths(|new| {
            new.models.reverse();
            new.models[0].aliases.push("x".into());
            new.limits.body = 1;
            new.timeouts.connect *= 2;
        });
        assert!(changed.is_empty(), "{changed:?}");
    }
}
