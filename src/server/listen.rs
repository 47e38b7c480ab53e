//! Listening sockets, taken before anything runs, so that a mistake is told in words and is no panic.

use crate::proxy::KEEPALIVE;
use parking_lot::Mutex;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig, TcpSocketOptions};
use pingora_core::server::{Fds, ListenFds};
use pingora_core::services::listening::Service;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;

/// All sockets. Pingora gets them as if they came from a process before this one; some do.
#[derive(Default)]
pub struct Listeners {
    sockets: Vec<Socket>,
    addresses: Vec<SocketAddr>,
    inherited: Vec<Socket>,
}

/// A listening socket, and the address that was configured for it.
pub struct Socket {
    pub configured: SocketAddr,
    pub listener: TcpListener,
}

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("cannot listen on {address}: {cause}")]
    Bind { address: SocketAddr, cause: io::Error },
    #[error("TLS of {address}: {cause}")]
    Tls { address: SocketAddr, cause: String },
}

/// A service at `address`. TLS is done by the acceptor: Pingora would take any number of handshakes at once, a minute
/// each, with certificates that never change.
pub fn service<A>(name: String, app: A, address: SocketAddr) -> Service<A> {
    let mut options = TcpSocketOptions::default();
    // Without it a client that has vanished stays in the queue for ever.
    options.tcp_keepalive = Some(KEEPALIVE);
    // Whoever reads has a buffer already; Pingora's would be 64 KiB more for every connection.
    let buffer = L4BufferSettings::default().read(0);
    let mut service = Service::new(name, app);
    service.add_listener(ListenerConfig::tcp(address.to_string()).tcp_socket_options(options).l4_buffer(buffer));
    service
}

// === impl Listeners ===

impl Listeners {
    /// `inherited` are sockets of the process before this one: they are used where their address is configured.
    pub fn new(inherited: Vec<Socket>) -> Self {
        Self { inherited, ..Self::default() }
    }

    /// Listens on `address`, and gives the address with the port that it got.
    ///
    /// # Errors
    /// The address is taken, or is not this machine's.
    pub fn add(&mut self, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        let configured = address;
        let mut bound = || {
            let listener = match self.inherited.iter().position(|socket| socket.configured == configured) {
                Some(at) => self.inherited.remove(at).listener,
                None => TcpListener::bind(configured)?,
            };
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((listener, address))
        };
        let (listener, address) = bound().map_err(|cause| ListenError::Bind { address, cause })?;
        self.sockets.push(Socket { configured, listener });
        self.addresses.push(address);
        Ok(address)
    }

    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Gives the sockets to one worker's services, each by its address. Inherited sockets that no service wants are
    /// closed.
    ///
    /// # Errors
    /// There is no descriptor left.
    pub fn open(&mut self) -> io::Result<ListenFds> {
        self.inherited.clear();
        let mut fds = Fds::new();
        for (address, socket) in self.addresses.iter().zip(&self.sockets) {
            fds.add(address.to_string(), socket.listener.try_clone()?.into_raw_fd());
        }
        Ok(Arc::new(Mutex::new(fds)))
    }

    /// The sockets for the process after this one.
    pub fn sockets(&self) -> &[Socket] {
        &self.sockets
    }

    /// Gives up this process's own hold on the sockets; Pingora gives up its hold when it stops accepting.
    pub fn close(&mut self) {
        self.sockets.clear();
    }
}
