//! A program's script: its steps, their sizes, and the gaps between them. No policy changes a script.

use super::rng::Rng;
use crate::engine::chain::{Chain, mix};
use std::sync::Arc;
use std::time::Duration;

/// One agent run.
#[derive(Clone, Debug, PartialEq)]
pub struct Script {
    /// Class of the program. Programs of one class share the start of their prompts.
    pub class: u64,
    /// Steps, at least one.
    pub steps: Vec<Step>,
}

/// One inference request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Time since the end of the step before, while a tool runs. For a first step: time since the start of the program
    /// before.
    pub gap: Duration,
    pub prompt: usize,
    /// Number of tokens at the start of the prompt that every program of the class has.
    pub shared: usize,
    pub output: usize,
    /// Size of the prompt as text, in bytes: the size that a proxy sees.
    pub bytes: u64,
}

/// The block hashes of a program's steps.
#[derive(Clone, Debug)]
pub struct Texts {
    /// Hashes of each series of steps in which every prompt extends the one before.
    chains: Vec<Arc<[u64]>>,
    /// Index of the chain of each step, and the number of tokens of its prompt that earlier steps had computed.
    steps: Vec<(usize, usize)>,
}

// === impl Script ===

impl Script {
    /// Gives every prompt a size in bytes. Languages and tools differ in bytes per token, and so do the messages of one
    /// program.
    pub fn write_bytes(&mut self, rng: &mut Rng) {
        let own = rng.between((3.4, 4.6));
        let (mut tokens, mut bytes) = (0usize, 0.0);
        for step in &mut self.steps {
            let ratio = own * rng.between((0.85, 1.15));
            bytes = match step.prompt.checked_sub(tokens) {
                Some(new) => bytes + new as f64 * ratio,
                None => step.prompt as f64 * own,
            };
            tokens = step.prompt;
            step.bytes = bytes as u64;
        }
    }

    /// Makes the program a giant: `first` tokens in its first prompt, and at most `steps` steps.
    pub fn enlarge(&mut self, first: usize, steps: usize) {
        self.steps.truncate(steps);
        let (tokens, bytes) = (self.steps[0].prompt, self.steps[0].bytes);
        let more = first.saturating_sub(tokens);
        for step in &mut self.steps {
            step.prompt += more;
            step.bytes += more as u64 * bytes / tokens as u64;
        }
    }

    /// Multiplies the bytes after the first prompt by `factor`.
    pub fn misjudge(&mut self, factor: f64) {
        let first = self.steps[0].bytes;
        for step in &mut self.steps {
            let more = step.bytes.saturating_sub(first) as f64;
            step.bytes = step.bytes.min(first) + (more * factor) as u64;
        }
    }

    /// The texts of program number `number`. Only the prefix of the program's class is shared with others.
    #[must_use]
    pub fn texts(&self, number: u64, block_size: usize) -> Texts {
        let mut texts = Texts { chains: Vec::new(), steps: Vec::new() };
        let mut at = 0;
        while at < self.steps.len() {
            let stretch = &self.steps[at..];
            let grown = stretch.windows(2).take_while(|pair| pair[1].prompt >= pair[0].prompt).count();
            let stretch = &stretch[..=grown];
            let length = stretch.iter().map(|step| step.prompt + step.output).max().unwrap_or(0);
            let shared = stretch[0].shared.min(stretch[0].prompt);
            let mut chain = Chain::new(block_size);
            chain.push_stream(mix(self.class), 0, shared as u64);
            let own = mix(mix(number).wrapping_add(at as u64 + 1));
            chain.push_stream(own, shared as u64, (length - shared) as u64);
            let mut known = shared;
            for step in stretch {
                texts.steps.push((texts.chains.len(), known.min(step.prompt)));
                known = step.prompt + step.output;
            }
            texts.chains.push(chain.hashes().into());
            at += stretch.len();
        }
        texts
    }
}

// === impl Texts ===

impl Texts {
    /// Hashes of the full blocks of step `at`, and maybe of more blocks.
    #[must_use]
    pub fn chain(&self, at: usize) -> Arc<[u64]> {
        Arc::clone(&self.chains[self.steps[at].0])
    }

    /// Number of tokens at the start of step `at`'s prompt that an earlier step, or another program of the class, has
    /// computed.
    #[must_use]
    pub fn known(&self, at: usize) -> usize {
        self.steps[at].1
    }
}
