//! Compares the oracle's knowledge with the scheduler's views, after every event.

use super::*;

impl Oracle {
    /// Compares all that the oracle knows with the views of the scheduler.
    pub fn compare(&self, scheduler: &Scheduler) {
        let loads = scheduler.loads();
        assert_eq!(loads.len(), self.backends.len());
        for load in &loads {
            self.compare_load(load);
        }
        let views = scheduler.programs();
        assert_eq!(views.len(), self.current.len(), "programs known");
        for view in &views {
            let at = self.current[&view.key];
            let life = &self.lives[&at];
            assert_eq!((view.leased, view.context), (life.lease.is_some(), life.context), "{life:?}");
            assert!(life.lease.is_none() || view.backend == life.lease, "{view:?} {life:?}");
            assert_eq!((view.in_flight, view.held), (self.running(at).count(), self.held(at)), "{life:?}");
            assert!(view.held > 0 || view.footprint == self.charge(at), "{view:?} {life:?}");
            let waits = view.held > 0 && self.policy.routing == Routing::Program;
            assert!(!(view.leased && waits) || self.frozen, "{life:?} is leased and waits");
        }
        let held = self.steps.values().filter(|step| step.run.is_none());
        assert!(held.clone().all(|step| step.announced), "held and not announced");
        assert_eq!((scheduler.open_steps(), scheduler.held_steps()), (self.steps.len(), held.clone().count()));
        let idle = |load: &&LoadView| {
            load.up && !load.draining && load.in_flight + load.leased_idle + load.leased_running == 0
        };
        if let Some(empty) = loads.iter().find(idle).filter(|_| !self.frozen) {
            let avoids = held.clone().any(|step| !step.avoid.is_empty());
            assert!(avoids || held.count() == 0, "steps wait and {empty:?} stands empty");
        }
    }

    fn compare_load(&self, load: &LoadView) {
        let here = |(_, life): &(&usize, &Life)| life.lease == Some(load.backend);
        let (idle, running): (Vec<usize>, Vec<usize>) =
            self.lives.iter().filter(here).map(|(&at, _)| at).partition(|&at| self.running(at).count() == 0);
        let sum = |lives: &[usize]| lives.iter().map(|&at| self.charge(at)).sum::<Tokens>();
        assert_eq!((load.charged_running, load.charged_idle), (sum(&running), sum(&idle)), "{load:?}");
        assert_eq!((load.leased_running, load.leased_idle), (running.len(), idle.len()), "{load:?}");
        let flying = self.steps.values().filter_map(|step| step.run.as_ref()).filter(|run| run.on == load.backend);
        assert_eq!(load.in_flight, flying.count(), "{load:?}");
        assert_eq!((load.up, load.draining), self.backends[&load.backend]);
        assert!(load.up || load.leased_running + load.leased_idle == 0, "{load:?} is down and holds leases");
        self.admission_fits(load);
    }

    /// Checks that admission takes claims above the capacity only for a program that alone needs nearly all of it.
    fn admission_fits(&self, load: &LoadView) {
        let Some(capacity) = load.effective_capacity else { return };
        let admitted = || self.admitted.iter().filter(|(_, on, _)| *on == load.backend);
        let giant = |at: usize| self.charge(at) > capacity.scale(0.95);
        let excused = admitted().any(|&(at, _, kind)| kind == DispatchKind::Forced || giant(at));
        let weighed = self.policy.settings.acting_decay || self.policy.settings.acting_weight < 1.0;
        let claims = load.charged_running + load.charged_idle;
        assert!(
            claims <= capacity || admitted().count() == 0 || excused || weighed,
            "admitted above the capacity: {load:?}, {:?}",
            admitted().map(|(at, ..)| &self.lives[at]).collect::<Vec<_>>()
        );
    }
}
