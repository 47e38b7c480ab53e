//! Reloading the configuration while the server runs. The whole file is read and validated first. Then all of it takes
//! effect, or nothing.

use super::{App, AppError, Live};
use crate::config::Failure;
use crate::logging;
use std::sync::Arc;

/// The reason why the old configuration stays.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error(transparent)]
    Config(#[from] Failure),
    #[error(transparent)]
    App(#[from] AppError),
}

impl App {
    /// Reads the configuration file again and applies it. Blocks while the file is read and directories are created.
    ///
    /// # Errors
    /// All mistakes, and all changes that need a new process. After an error the old configuration stays.
    pub fn reload(&self) -> Result<(), ReloadError> {
        let _one_at_a_time = self.reloading.lock();
        let done = self.apply();
        self.telemetry.metrics.config_reloaded(done.is_ok());
        match &done {
            Ok(()) => log::info!("the configuration was loaded anew"),
            // Each line is one mistake, with its place in the file.
            Err(reasons) => reasons.to_string().lines().for_each(|reason| {
                log::error!("the configuration stays as it was: {reason}");
            }),
        }
        done
    }

    fn apply(&self) -> Result<(), ReloadError> {
        let old = self.settings();
        let new = Arc::new(Live::new(Arc::new(self.flags.reload(&old)?)).map_err(AppError::from)?);
        // Steps that can fail come first, so that nothing is half applied.
        self.telemetry.reload(&old, &new).map_err(AppError::from)?;
        logging::set_level(&new.logging.level);
        self.settings.store(Arc::clone(&new));
        self.gate.reload(&new);
        self.bodies.resize(new.limits.body_total);
        self.fleet.confine(new.admin.as_ref());
        self.fleet.reload(&new.models, &new.metrics);
        Ok(())
    }
}
