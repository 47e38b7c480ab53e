//! What systemd wants to know of a unit with `Type=notify` (its sd_notify protocol): which process serves, and when.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// Says that this process serves, in place of any before it.
pub fn serving() {
    tell(&format!("READY=1\nMAINPID={}", std::process::id()));
}

/// Says that this process ends, and no other has taken over.
pub fn stopping() {
    tell("STOPPING=1");
}

/// Sends `words` to the supervisor, if there is one.
fn tell(words: &str) {
    if let Some(socket) = env::var_os("NOTIFY_SOCKET")
        && let Err(e) = send(&socket, words)
    {
        log::warn!("NOTIFY_SOCKET: {e}");
    }
}

fn send(socket: &OsStr, words: &str) -> io::Result<()> {
    let address = match socket.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(words.as_bytes(), &address)?;
    Ok(())
}
