//! The simulated engine: its model in virtual time, and its HTTP endpoints.
//!
//! [`model`] decides what happens at which time; it knows only block hashes and counts. [`Server`] puts the endpoints
//! of vLLM, or of another engine, in front of the model and runs it in real time.

mod answer;
mod blocks;
pub mod chain;
pub mod cost;
mod driver;
mod error;
mod face;
mod http;
mod metrics;
pub mod model;
mod prompt;
mod server;
mod status;
mod token;
mod wire;

#[cfg(test)]
mod tests;

pub use face::Flavor;
pub use server::{Server, StartError};

use cost::Costs;
use model::Shape;
use std::io::Write;
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// `thundergate engine`: one simulated inference server.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    pub host: String,
    /// Port to listen on; 0 takes a free one and prints it.
    #[arg(long, default_value_t = 8000)]
    pub port: u16,
    /// Which engine it looks like.
    #[arg(long, value_enum, default_value_t)]
    pub flavor: Flavor,
    /// Engines behind the one address, each with its own cache; the header `x-data-parallel-rank` chooses one.
    #[arg(long, default_value_t = 1, value_name = "RANKS")]
    pub data_parallel_size: usize,
    /// Blocks of KV cache; one of them is vLLM's null block and holds nothing.
    #[arg(long, default_value_t = 4096)]
    pub kv_blocks: u32,
    /// Tokens in a block.
    #[arg(long, default_value_t = 16)]
    pub block_size: usize,
    /// Name of the model it serves.
    #[arg(long, default_value = "sim")]
    pub model: String,
    /// Prompt tokens computed per second.
    #[arg(long, default_value_t = 10_000.0)]
    pub prefill_tps: f64,
    /// Milliseconds that one iteration takes besides its prefill: the time of one output token.
    #[arg(long, default_value_t = 20.0)]
    pub decode_ms: f64,
    /// Sequences in one batch at most.
    #[arg(long, default_value_t = 256)]
    pub max_num_seqs: usize,
    /// Divides all times.
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
    /// The answers' seed: same seed and prompt, same answer.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Tokens of prompt and output together at most; never more than the cache holds.
    #[arg(long)]
    pub max_model_len: Option<usize>,
    /// Tokens in one iteration at most; a longer prompt is prefilled in chunks.
    #[arg(long, default_value_t = 8192)]
    pub max_num_batched_tokens: usize,
    /// Answers to give, one JSON string or message object a line: the first line to a prompt without an answer of
    /// the assistant in it, the second to one with one, and so on; the last again and again.
    #[arg(long, value_name = "FILE")]
    pub script: Option<PathBuf>,
}

/// Settings that a server is made from.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    pub host: String,
    pub port: u16,
    pub model: String,
    pub seed: u64,
    pub max_model_len: Option<usize>,
    pub script: Option<PathBuf>,
    pub flavor: Flavor,
    /// Number of engines behind the address, at least one.
    pub ranks: usize,
    /// Shape of each engine.
    pub shape: Shape,
}

/// Serves until SIGTERM or SIGINT. After SIGTERM, answers under way are finished; after SIGINT they are not.
pub fn run(args: Args) -> Result<(), StartError> {
    let config = EngineConfig::try_from(args)?;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let server = Server::start(config).await?;
        // The process that started the engine may wait for this line. If nobody reads the line, the engine serves all
        // the same.
        let _ = writeln!(std::io::stdout(), "listening on {}", server.url());
        tokio::select! {
            _ = interrupt.recv() => server.kill().await,
            _ = terminate.recv() => tokio::select! {
                () = server.stop() => {}
                _ = interrupt.recv() => {}
            },
        }
        Ok(())
    })
}

// === impl EngineConfig ===

impl Default for EngineConfig {
    /// A small, fast engine on a free port of loopback, for tests.
    fn default() -> Self {
        Self {
            host: "127.0.0.1".to_owned(),
            port: 0,
            model: "sim".to_owned(),
            seed: 0,
            max_model_len: None,
            script: None,
            flavor: Flavor::Vllm,
            ranks: 1,
            shape: Shape {
                kv_blocks: 4096,
                block_size: 16,
                max_num_seqs: 256,
                max_num_batched_tokens: 8192,
                costs: Costs::simple(1e6, 1.0),
            },
        }
    }
}

impl TryFrom<Args> for EngineConfig {
    type Error = StartError;

    fn try_from(args: Args) -> Result<Self, StartError> {
        let positive = |flag, value: f64| match value > 0.0 && value.is_finite() {
            true => Ok(value),
            false => Err(StartError::Flag { flag, problem: "must be a number above 0" }),
        };
        let prefill_tps = positive("prefill-tps", args.prefill_tps)?;
        let decode_ms = positive("decode-ms", args.decode_ms)?;
        let speed = positive("speed", args.speed)?;
        if args.kv_blocks < 2 {
            return Err(StartError::Flag {
                flag: "kv-blocks",
                problem: "must be at least 2: one block is the null block",
            });
        }
        Ok(Self {
            host: args.host,
            port: args.port,
            model: args.model,
            seed: args.seed,
            max_model_len: args.max_model_len,
            script: args.script,
            flavor: args.flavor,
            ranks: args.data_parallel_size.max(1),
            shape: Shape {
                kv_blocks: args.kv_blocks,
                block_size: args.block_size.max(1),
                max_num_seqs: args.max_num_seqs,
                max_num_batched_tokens: args.max_num_batched_tokens,
                costs: Costs::simple(prefill_tps, decode_ms).faster(speed),
            },
        })
    }
}
