//! Agents in a closed loop around a scheduler, second by second: a step takes two seconds, a tool takes one, and then
//! the next step comes.

use super::world::World;
use crate::units::Tokens;
use crate::*;
use std::time::Duration;

const STEP: Duration = Duration::from_secs(2);
const TOOL: Duration = Duration::from_secs(1);

/// The behaviour of all agents.
#[derive(Clone, Copy)]
pub struct Habit {
    /// Tokens of the first prompt, and tokens that each later prompt is longer than the one before.
    pub first: u64,
    pub growth: u64,
    /// Number of steps of a program. Then another program begins in its place.
    pub steps: u64,
    pub usage: bool,
    pub release: bool,
}

struct Agent {
    name: String,
    done: u64,
    step: Option<StepId>,
    /// Time when its next step arrives, or when its running step ends.
    due: Option<Duration>,
}

pub struct Agents {
    pub world: World,
    habit: Habit,
    agents: Vec<Agent>,
    /// Number of programs that have ended, and number of steps that have ended on each backend.
    pub programs: u64,
    pub steps_on: Vec<u64>,
    pub refused: u64,
}

impl Agents {
    pub fn new(world: World, habit: Habit, count: u64) -> Self {
        let agent = |number| Agent { name: format!("a{number}"), done: 0, step: None, due: Some(world.now) };
        let steps_on = vec![0; world.scheduler.loads().len()];
        Self { agents: (0..count).map(agent).collect(), world, habit, programs: 0, steps_on, refused: 0 }
    }

    pub fn live(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.world.ticks(1);
            for at in 0..self.agents.len() {
                self.look_at(at);
            }
        }
    }

    fn look_at(&mut self, at: usize) {
        let Agent { name, done, step, due } = &mut self.agents[at];
        let now = self.world.now;
        match (*step, *due) {
            (None, Some(due)) if due <= now => {
                let tokens = self.habit.first + self.habit.growth * *done;
                *step = Some(self.world.arrive(name, tokens));
            }
            (Some(id), None) if self.world.went(id).is_some() => *due = Some(now + STEP),
            (Some(id), None) if self.world.refused(id).is_some() => {
                (*step, *due) = (None, Some(now + TOOL));
                self.refused += 1;
            }
            (Some(id), Some(late)) if late <= now => self.end(at, id),
            _ => {}
        }
        // A step that has just arrived may have been dispatched at once.
        if let Agent { step: Some(id), due: due @ Some(_), .. } = &mut self.agents[at]
            && due.is_some_and(|due| due <= now)
        {
            *due = self.world.went(*id).map(|_| now + STEP);
        }
    }

    fn end(&mut self, at: usize, id: StepId) {
        let Agent { name, done, step, due } = &mut self.agents[at];
        let prompt = Tokens(self.habit.first + self.habit.growth * *done);
        let usage = Usage { prompt, completion: Tokens(50), cached: None };
        self.steps_on[self.world.place(id).unwrap() as usize] += 1;
        self.world.handle(Event::FirstToken(id));
        self.world.end(id, Outcome::Completed(self.habit.usage.then_some(usage)));
        (*step, *due, *done) = (None, Some(self.world.now + TOOL), *done + 1);
        if *done == self.habit.steps {
            if self.habit.release {
                self.world.release(name);
            }
            self.programs += 1;
            (*name, *done) = (format!("{name}'"), 0);
        }
    }
}
