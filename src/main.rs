//! Arguments → `Config` → run.

use clap::Parser;
use std::path::Path;
use std::process::ExitCode;
use thundergate::cli::{Cli, Command};
use thundergate::config::{self, Config, Failure, Flags};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => serve(&cli.flags),
        Some(Command::Check(check)) => tell(&check.config),
        Some(Command::Schema) => {
            println!("{:#}", config::schema());
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|failure| {
        eprintln!("{failure}");
        ExitCode::from(failure.exit_code())
    })
}

/// `thundergate check`: like `nginx -t`.
fn tell(file: &Path) -> Result<ExitCode, Failure> {
    config::from_file(file)?;
    println!("{}: ok", file.display());
    Ok(ExitCode::SUCCESS)
}

/// `thundergate`: the proxy.
fn serve(flags: &Flags) -> Result<ExitCode, Failure> {
    let (config, notes) = flags.load()?;
    // RUST_LOG wins over the configured level.
    let level = env_logger::Env::default().default_filter_or(&config.logging.level);
    env_logger::Builder::from_env(level).init();
    for (flag, reason) in notes {
        log::warn!("{flag} {reason}");
    }
    Ok(run(&config))
}

fn run(config: &Config) -> ExitCode {
    for listener in &config.listeners {
        log::info!("configured to listen on {}", listener.address);
    }
    log::error!("this build has no server");
    ExitCode::FAILURE
}
