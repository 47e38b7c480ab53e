//! Listening sockets, taken before anything runs, so that a mistake is told and not a panic.

use crate::proxy::KEEPALIVE;
use parking_lot::Mutex;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig, TcpSocketOptions};
use pingora_core::server::{Fds, ListenFds};
use pingora_core::services::listening::Service;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;

/// All sockets, to be handed to Pingora as if they came from a process before this one.
#[derive(Default)]
pub struct Listeners {
    sockets: Vec<TcpListener>,
    addresses: Vec<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {cause}")]
    Bind { address: SocketAddr, cause: io::Error },
    #[error("TLS of {address}: {cause}")]
    Tls { address: SocketAddr, cause: String },
}

// === impl Listeners ===

impl Listeners {
    /// Listens on `address` for `service`, which does TLS itself where it is wanted: Pingora would take any number of
    /// handshakes at once, a minute each, with certificates that never change.
    ///
    /// # Errors
    /// The address is taken or not ours.
    pub fn add<A>(&mut self, service: &mut Service<A>, address: SocketAddr) -> Result<(), ListenError> {
        let bound = || {
            let socket = TcpListener::bind(address)?;
            socket.set_nonblocking(true)?;
            let address = socket.local_addr()?;
            Ok((socket, address))
        };
        let (socket, address) = bound().map_err(|cause| ListenError::Bind { address, cause })?;
        let mut options = TcpSocketOptions::default();
        // Or a client that vanished stays in the queue for ever.
        options.tcp_keepalive = Some(KEEPALIVE);
        // All that read have buffers of their own; Pingora's would be 64 KiB for every connection.
        let buffer = L4BufferSettings::default().read(0);
        let listener = ListenerConfig::tcp(address.to_string()).tcp_socket_options(options).l4_buffer(buffer);
        service.add_listener(listener);
        self.sockets.push(socket);
        self.addresses.push(address);
        Ok(())
    }

    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Gives the sockets away, each by its address.
    pub fn into_fds(self) -> ListenFds {
        let mut fds = Fds::new();
        for (address, socket) in self.addresses.iter().zip(self.sockets) {
            fds.add(address.to_string(), socket.into_raw_fd());
        }
        Arc::new(Mutex::new(fds))
    }
}
