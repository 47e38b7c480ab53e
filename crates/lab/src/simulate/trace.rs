//! Recorded workloads, one JSON object a line, one line a step:
//!
//! ```json
//! {"program": "a", "step": 1, "arrive_gap_s": 0.0, "prompt_tokens": 2800, "shared_tokens": 1500, "output_tokens": 240}
//! {"program": "a", "step": 2, "arrive_gap_s": 1.7, "prompt_tokens": 3900, "shared_tokens": 1500, "output_tokens": 180}
//! ```
//!
//! The steps of a program stand in order, counted up by one. Programs may be interleaved. `arrive_gap_s` is the time
//! from the end of the program's step before; for a first step, from the start of the program before it in the file.
//! `shared_tokens` is how much of the prompt's start every program has; if a `class` (a name) is given, only programs
//! of the same class. A prompt that is not shorter than the one before extends it. A shorter prompt is taken as
//! rewritten after its shared part. Blank lines are skipped.

use super::script::{Script, Step};
use crate::engine::chain::mix;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

/// Programs in the order of their first lines.
#[derive(Clone, Debug, PartialEq)]
pub struct Trace {
    /// Scripts, at least one. Sizes in bytes are not filled in.
    pub scripts: Vec<Script>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Line {
    program: String,
    step: u64,
    arrive_gap_s: f64,
    prompt_tokens: usize,
    shared_tokens: usize,
    output_tokens: usize,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    class: String,
}

/// Number of tokens beyond any model's context. The limit keeps a slip of the pen from filling the memory.
const LONGEST: usize = 100_000_000;

// === impl Trace ===

impl Trace {
    /// Reads a file.
    ///
    /// # Errors
    /// A sentence with the file's name and the number of the wrong line.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        Self::parse(&text).map_err(|problem| format!("{}: {problem}", path.display()))
    }

    fn parse(text: &str) -> Result<Self, String> {
        let mut trace = Self { scripts: Vec::new() };
        // Index of each program's script, and the number of its last step.
        let mut programs: HashMap<String, (usize, u64)> = HashMap::new();
        let lines = text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty());
        for (line, number) in lines {
            trace.take(line, &mut programs).map_err(|problem| format!("line {number}: {problem}"))?;
        }
        if trace.scripts.is_empty() {
            return Err("no steps in it".to_owned());
        }
        Ok(trace)
    }

    fn take(&mut self, text: &str, programs: &mut HashMap<String, (usize, u64)>) -> Result<(), String> {
        // Each line is parsed alone, so the parser's own line number would only confuse.
        let parsed = serde_json::from_str(text);
        let line: Line = parsed.map_err(|error| error.to_string().replace(" at line 1 column", ", column"))?;
        let step = line.step()?;
        if let Some((at, last)) = programs.get_mut(&line.program) {
            if line.step != *last + 1 {
                return Err(format!("step {} of program {:?} follows its step {last}", line.step, line.program));
            }
            *last = line.step;
            self.scripts[*at].steps.push(step);
            return Ok(());
        }
        if line.step > 1 {
            return Err(format!("program {:?} begins with step {}", line.program, line.step));
        }
        let class = line.class.bytes().fold(0, |hash, byte| mix(hash ^ u64::from(byte)));
        programs.insert(line.program, (self.scripts.len(), line.step));
        self.scripts.push(Script { class, steps: vec![step] });
        Ok(())
    }
}

// === impl Line ===

impl Line {
    fn step(&self) -> Result<Step, String> {
        let sizes = [("prompt_tokens", self.prompt_tokens), ("output_tokens", self.output_tokens)];
        for (name, tokens) in sizes {
            if !(1..=LONGEST).contains(&tokens) {
                return Err(format!("{name} must be from 1 to {LONGEST}"));
            }
        }
        if self.shared_tokens > self.prompt_tokens {
            return Err("shared_tokens is larger than prompt_tokens".to_owned());
        }
        let gap = Duration::try_from_secs_f64(self.arrive_gap_s);
        let gap = gap.map_err(|_| "arrive_gap_s must be a number of seconds, 0 or more".to_owned())?;
        Ok(Step { gap, prompt: self.prompt_tokens, shared: self.shared_tokens, output: self.output_tokens, bytes: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::super::workload::Workload;
    use super::*;

    fn write(scripts: &[Script]) -> String {
        let mut lines = Vec::new();
        for (number, script) in scripts.iter().enumerate() {
            for (at, step) in script.steps.iter().enumerate() {
                let line = Line {
                    program: format!("p{number}"),
                    step: at as u64 + 1,
                    arrive_gap_s: step.gap.as_secs_f64(),
                    prompt_tokens: step.prompt,
                    shared_tokens: step.shared,
                    output_tokens: step.output,
                    class: String::new(),
                };
                lines.push(serde_json::to_string(&line).unwrap());
            }
        }
        lines.join("\n")
    }

    #[test]
    fn what_is_written_is_read_back() {
        let mut scripts: Vec<Script> = (0..5).map(|number| Workload::Swe.script(1, number)).collect();
        for script in &mut scripts {
            script.class = 0;
            script.steps.iter_mut().for_each(|step| step.bytes = 0);
        }
        let trace = Trace::parse(&write(&scripts)).unwrap();
        assert_eq!(trace.scripts, scripts);
    }

    #[test]
    fn interleaved_programs_are_told_apart_and_blank_lines_skipped() {
        let text = r#"{"program":"a","step":1,"arrive_gap_s":0,"prompt_tokens":10,"shared_tokens":4,"output_tokens":5}

{"program":"b","step":1,"arrive_gap_s":2.5,"prompt_tokens":20,"shared_tokens":4,"output_tokens":5,"class":"other"}
{"program":"a","step":2,"arrive_gap_s":1,"prompt_tokens":30,"shared_tokens":4,"output_tokens":5}"#;
        let trace = Trace::parse(text).unwrap();
        assert_eq!(trace.scripts.iter().map(|s| s.steps.len()).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(trace.scripts[1].steps[0].gap, Duration::from_millis(2500));
        assert_ne!(trace.scripts[0].class, trace.scripts[1].class);
    }

    #[test]
    fn a_mistake_is_told_with_its_line() {
        let good =
            r#"{"program":"a","step":1,"arrive_gap_s":0,"prompt_tokens":10,"shared_tokens":4,"output_tokens":5}"#;
        let with = |line: &str| Trace::parse(&format!("{good}\n\n{line}")).unwrap_err();
        let mistakes = [
            (good.to_owned(), "line 3: step 1 of program \"a\" follows its step 1"),
            (
                good.replace("\"a\"", "\"b\"").replace("\"step\":1", "\"step\":7"),
                "line 3: program \"b\" begins with step 7",
            ),
            (good.replace("\"a\"", "\"b\"").replace(":10,", ":0,"), "line 3: prompt_tokens must be from 1"),
            (good.replace("\"a\"", "\"b\"").replace(":4,", ":11,"), "line 3: shared_tokens is larger"),
            (good.replace("\"a\"", "\"b\"").replace("_s\":0", "_s\":-1"), "line 3: arrive_gap_s must be"),
            (good.replace("output_tokens", "tokens"), "line 3: unknown field `tokens`"),
            ("{".to_owned(), "line 3: EOF"),
        ];
        for (line, says) in mistakes {
            let said = with(&line);
            assert!(said.starts_with(says), "{said}");
        }
        assert_eq!(Trace::parse("\n").unwrap_err(), "no steps in it");
    }
}
