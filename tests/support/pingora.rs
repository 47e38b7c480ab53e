//! A bare Pingora proxy service in this process, on a free port.

use parking_lot::Mutex;
use pingora_core::apps::HttpServerOptions;
use pingora_core::server::Fds;
use pingora_core::server::configuration::ServerConf;
use pingora_core::services::Service as _;
use pingora_proxy::{ProxyHttp, http_proxy_service};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use tokio::sync::watch;

/// Runs until it is dropped.
pub struct Running {
    pub address: SocketAddr,
    _shutdown: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

/// Serves HTTP/1.1 and h2c.
pub fn serve<P>(proxy: P) -> Running
where
    P: ProxyHttp + Send + Sync + 'static,
    P::CTX: Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket option");
    let address = listener.local_addr().expect("bound");
    let mut fds = Fds::new();
    fds.add(address.to_string(), listener.into_raw_fd());
    let mut service = http_proxy_service(&Arc::new(ServerConf::default()), proxy);
    service.add_tcp(&address.to_string());
    let mut options = HttpServerOptions::default();
    options.h2c = true;
    service.app_logic_mut().expect("not started").server_options = Some(options);
    let (shutdown, watch) = watch::channel(false);
    let fds = Some(Arc::new(Mutex::new(fds)));
    let task = tokio::spawn(async move { service.start_service(fds, watch, 1).await });
    Running { address, _shutdown: shutdown, task }
}

// === impl Running ===

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}
