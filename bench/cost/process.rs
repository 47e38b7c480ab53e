//! A process with all its descendants, and the kernel's figures about them.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// A process that is killed when dropped, with all its descendants.
pub struct Process {
    child: Child,
}

// === impl Process ===

impl Process {
    /// Starts the process. Its output goes into `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let file =
            || Stdio::from(fs::File::options().create(true).append(true).open(log).expect("a writable directory"));
        command.stdin(Stdio::null()).stdout(file()).stderr(file()).kill_on_drop(true);
        let child = command.spawn().unwrap_or_else(|e| panic!("{command:?}: {e}"));
        Self { child }
    }

    pub fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// CPU time of all threads so far, descendants included.
    pub fn cpu(&self) -> Duration {
        let of_task = |task: fs::DirEntry| {
            let stat = fs::read_to_string(task.path().join("schedstat")).ok()?;
            stat.split(' ').next()?.parse::<u64>().ok()
        };
        let of = |id: &u32| -> u64 {
            let tasks = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten();
            tasks.filter_map(|task| of_task(task.ok()?)).sum()
        };
        Duration::from_nanos(self.family().iter().map(of).sum())
    }

    /// Resident memory of the process and its descendants in kB.
    pub fn resident(&self) -> u64 {
        let of = |id: &u32| {
            let status = fs::read_to_string(format!("/proc/{id}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
            line.trim().trim_end_matches(" kB").parse::<u64>().ok()
        };
        self.family().iter().filter_map(of).sum()
    }

    /// The process and its descendants.
    fn family(&self) -> Vec<u32> {
        let mut family: Vec<u32> = self.child.id().into_iter().collect();
        let mut next = 0;
        while let Some(id) = family.get(next) {
            let threads = fs::read_dir(format!("/proc/{id}/task")).into_iter().flatten().flatten();
            let children = threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
            let children: Vec<_> = children
                .flat_map(|ids| ids.split(' ').filter_map(|id| id.parse().ok()).collect::<Vec<u32>>())
                .collect();
            family.extend(children);
            next += 1;
        }
        family
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        for id in self.family().into_iter().skip(1) {
            if let Some(id) = i32::try_from(id).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process(id, rustix::process::Signal::TERM);
            }
        }
    }
}
