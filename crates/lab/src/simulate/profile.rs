//! Engine profiles: the speed of an engine, and the size of its KV cache.

use crate::engine::cost::Costs;
use crate::engine::model::Shape;
use serde::Deserialize;
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// GLM-4.6-FP8 on 8×H100: 500k tokens of KV cache (plausible, not measured)
    Glm,
    /// Qwen3-32B on 2×H100: 300k tokens of KV cache (plausible, not measured)
    Qwen,
}

/// A profile in a JSON file. A key that is absent has the value of `glm`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct File {
    /// Time of any iteration in milliseconds.
    t0_ms: f64,
    /// Time per prefilled token in microseconds.
    tp_us: f64,
    /// Time per prefilled token and per token before it, in nanoseconds.
    tq_ns: f64,
    /// Time per decoded token in milliseconds.
    td_ms: f64,
    /// Time per decoded token and per token before it, in nanoseconds.
    tkv_ns: f64,
    kv_tokens: usize,
    block_size: usize,
    max_num_seqs: usize,
    max_num_batched_tokens: usize,
}

// === impl Profile ===

impl Profile {
    #[must_use]
    pub fn shape(self) -> Shape {
        match self {
            Self::Glm => shape(Costs::GLM, 500_000, 16),
            Self::Qwen => shape(Costs::QWEN, 300_000, 16),
        }
    }
}

/// An engine that holds `kv_tokens`, with vLLM's usual limits on a batch.
fn shape(costs: Costs, kv_tokens: usize, block_size: usize) -> Shape {
    Shape {
        // One more block is the null block.
        kv_blocks: u32::try_from(kv_tokens / block_size + 1).unwrap_or(u32::MAX),
        block_size,
        max_num_seqs: 256,
        max_num_batched_tokens: 8192,
        costs,
    }
}

/// Reads an engine file.
///
/// # Errors
/// A text that says what is wrong with the file.
pub fn read(path: &Path) -> Result<Shape, String> {
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let file: File = serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))?;
    file.shape().map_err(|problem| format!("{}: {problem}", path.display()))
}

// === impl File ===

impl Default for File {
    fn default() -> Self {
        let Costs { t0, tp, tq, td, tkv } = Costs::GLM;
        let shape = Profile::Glm.shape();
        Self {
            t0_ms: t0 * 1e3,
            tp_us: tp * 1e6,
            tq_ns: tq * 1e9,
            td_ms: td * 1e3,
            tkv_ns: tkv * 1e9,
            kv_tokens: 500_000,
            block_size: shape.block_size,
            max_num_seqs: shape.max_num_seqs,
            max_num_batched_tokens: shape.max_num_batched_tokens,
        }
    }
}

impl File {
    fn shape(&self) -> Result<Shape, String> {
        let times = [self.t0_ms, self.tp_us, self.tq_ns, self.td_ms, self.tkv_ns];
        if times.iter().any(|time| !time.is_finite() || *time < 0.0) || times.iter().sum::<f64>() == 0.0 {
            return Err("times must not be negative, nor all zero".to_owned());
        }
        if self.block_size == 0 || self.kv_tokens < self.block_size {
            return Err("kv_tokens must be at least one block, and a block at least one token".to_owned());
        }
        let costs = Costs {
            t0: self.t0_ms * 1e-3,
            tp: self.tp_us * 1e-6,
            tq: self.tq_ns * 1e-9,
            td: self.td_ms * 1e-3,
            tkv: self.tkv_ns * 1e-9,
        };
        let limits = (self.max_num_seqs, self.max_num_batched_tokens);
        Ok(Shape {
            max_num_seqs: limits.0,
            max_num_batched_tokens: limits.1,
            ..shape(costs, self.kv_tokens, self.block_size)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_engine_file_is_glm_and_a_wrong_key_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.json");
        std::fs::write(&path, "{}").unwrap();
        let (read_back, glm) = (read(&path).unwrap(), Profile::Glm.shape());
        assert_eq!(read_back.kv_blocks, glm.kv_blocks);
        assert!((read_back.costs.tp - glm.costs.tp).abs() < 1e-12);
        std::fs::write(&path, r#"{"kv_token": 5}"#).unwrap();
        assert!(read(&path).unwrap_err().contains("kv_token"));
        std::fs::write(&path, r#"{"kv_tokens": 5}"#).unwrap();
        assert!(read(&path).unwrap_err().contains("at least one block"));
    }
}
