//! A thread that writes lines to a file or to stdout. The sender of a line never waits: when the disk is slow or full, lines
//! are dropped and counted.

use parking_lot::{Condvar, Mutex};
use prometheus_client::metrics::counter::Counter;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// Lines that may wait for the disk: at a thousand requests a second, four seconds of a stalled disk.
const QUEUE: usize = 4096;
/// Time between two writes, so that a busy proxy does not wake the thread for each line.
const PAUSE: Duration = Duration::from_millis(50);
/// Bytes gathered before one `write`, while lines keep coming.
const BATCH: usize = 64 * 1024;
/// Time after which a file that could not be opened or written is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How an item becomes bytes.
pub(super) trait Format: Send + 'static {
    type Item: Send + 'static;
    /// Appends the item and its line end.
    fn render(&self, item: Self::Item, out: &mut Vec<u8>);
    /// The first bytes of an empty file.
    fn header(&self) -> &'static [u8] {
        b""
    }
}

/// The sending side.
pub(super) struct Writer<T> {
    sender: SyncSender<Message<T>>,
    shared: Arc<Shared>,
    thread: Thread,
    dropped: Counter,
}

/// State that the sender and the thread share.
#[derive(Default)]
struct Shared {
    /// Whether the path is to be opened anew.
    reopen: AtomicBool,
    /// Items that were put into the queue.
    sent: AtomicU64,
    /// Items of the queue that were written or dropped.
    done: Mutex<u64>,
    advanced: Condvar,
}

enum Message<T> {
    Item(T),
    /// Asks the thread to look at the shared state.
    Wake,
}

struct Worker<F: Format> {
    format: F,
    path: PathBuf,
    target: Option<Destination>,
    retry_at: Option<Instant>,
    shared: Arc<Shared>,
    buffer: Vec<u8>,
    lines: u64,
    dropped: Counter,
}

enum Destination {
    Stdout,
    Stderr,
    File(File),
}

// === impl Writer ===

impl<T: Send + 'static> Writer<T> {
    /// `path`: `stdout`, `stderr`, or a file to append to. The thread opens the file, so that a path that blocks (a FIFO
    /// without a reader) blocks nobody else.
    ///
    /// # Errors
    /// The thread could not be started.
    pub(super) fn spawn<F>(name: &str, path: PathBuf, format: F, dropped: Counter) -> io::Result<Self>
    where
        F: Format<Item = T>,
    {
        let (sender, receiver) = sync_channel(QUEUE);
        let shared = Arc::<Shared>::default();
        let worker = Worker {
            format,
            path,
            target: None,
            retry_at: None,
            shared: Arc::clone(&shared),
            buffer: Vec::new(),
            lines: 0,
            dropped: dropped.clone(),
        };
        let handle = thread::Builder::new().name(name.to_owned()).spawn(move || worker.run(&receiver))?;
        Ok(Self { sender, shared, thread: handle.thread().clone(), dropped })
    }

    /// Sends an item, or drops and counts it when the queue is full. Never waits.
    pub(super) fn send(&self, item: T) {
        match self.sender.try_send(Message::Item(item)) {
            Ok(()) => _ = self.shared.sent.fetch_add(1, Ordering::Release),
            Err(_) => _ = self.dropped.inc(),
        }
    }

    /// Has the path opened anew before the next line, for a file that was rotated.
    pub(super) fn reopen(&self) {
        self.shared.reopen.store(true, Ordering::Release);
        // If the queue is full, the thread is awake anyway.
        let _ = self.sender.try_send(Message::Wake);
    }

    /// Waits until everything sent so far is written or dropped; `false` when that takes longer than `limit`.
    pub(super) fn flush(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        let sent = self.shared.sent.load(Ordering::Acquire);
        let mut done = self.shared.done.lock();
        while *done < sent {
            // The thread may be in its pause.
            self.thread.unpark();
            if self.shared.advanced.wait_until(&mut done, deadline).timed_out() {
                return *done >= sent;
            }
        }
        true
    }
}

// === impl Worker ===

impl<F: Format> Worker<F> {
    fn run(mut self, receiver: &Receiver<Message<F::Item>>) {
        while let Ok(message) = receiver.recv() {
            self.take(message);
            while self.buffer.len() < BATCH
                && let Ok(message) = receiver.try_recv()
            {
                self.take(message);
            }
            self.write_out();
            thread::park_timeout(PAUSE);
        }
    }

    fn take(&mut self, message: Message<F::Item>) {
        if let Message::Item(item) = message {
            self.format.render(item, &mut self.buffer);
            self.lines += 1;
        }
    }

    /// Writes the buffer. If the disk refuses, the buffer is dropped and its lines are counted.
    fn write_out(&mut self) {
        if self.shared.reopen.swap(false, Ordering::Acquire) {
            (self.target, self.retry_at) = (None, None);
        }
        if self.buffer.is_empty() {
            return;
        }
        let waiting = self.retry_at.is_some_and(|at| Instant::now() < at);
        if waiting {
            self.dropped.inc_by(self.lines);
        } else if let Err(error) = self.try_write() {
            if self.retry_at.is_none() {
                log::error!("{}: {error}; lines are dropped", self.path.display());
            }
            self.dropped.inc_by(self.lines);
            self.target = None;
            self.retry_at = Some(Instant::now() + RETRY);
        } else {
            self.retry_at = None;
        }
        self.buffer.clear();
        *self.shared.done.lock() += std::mem::take(&mut self.lines);
        self.shared.advanced.notify_all();
    }

    fn try_write(&mut self) -> io::Result<()> {
        let target = match &mut self.target {
            Some(target) => target,
            none => none.insert(Destination::open(&self.path, self.format.header())?),
        };
        target.append(&self.buffer)
    }
}

// === impl Destination ===

impl Destination {
    fn open(path: &Path, header: &[u8]) -> io::Result<Self> {
        match path.to_str() {
            Some("stdout") => return Ok(Self::Stdout),
            Some("stderr") => return Ok(Self::Stderr),
            _ => {}
        }
        let file = OpenOptions::new().append(true).create(true).open(path)?;
        let empty = file.metadata()?.len() == 0;
        let mut target = Self::File(file);
        if empty {
            target.append(header)?;
        }
        Ok(target)
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => io::stdout().lock().write_all(bytes),
            Self::Stderr => io::stderr().lock().write_all(bytes),
            Self::File(file) => append_whole(file, bytes),
        }
    }
}

/// Appends all bytes or none: a disk that fills up half-way leaves no torn line in front of the next one.
fn append_whole(file: &mut File, bytes: &[u8]) -> io::Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        match file.write(&bytes[written..]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => written += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let meta = file.metadata()?;
                if written > 0 && meta.is_file() {
                    file.set_len(meta.len().saturating_sub(written as u64))?;
                }
                return Err(error);
            }
        }
    }
    Ok(())
}
