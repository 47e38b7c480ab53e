//! The same `Proxy` under Pingora's own executor, set up as cheaply as possible: one thread and one runtime for each
//! core, no modules, no work stealing. The executor's retry buffer holds 64 KiB, so this target serves no larger
//! bodies.

use pingora_core::apps::{HttpServerApp, ReusedHttpStream};
use pingora_core::protocols::http::ServerSession;
use pingora_core::protocols::l4::stream::Stream;
use pingora_core::server::configuration::ServerConf;
use pingora_proxy::{HttpProxy, http_proxy};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use thundergate::app::App;
use thundergate::config;
use thundergate::control::Side;
use thundergate::proxy::Proxy;
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio::sync::watch;

/// Size in bytes of the largest body that this target can pass on.
pub const LARGEST: usize = 64 * 1024;

/// Serves the configuration in `file` until the process is killed.
pub async fn serve(file: &Path) {
    let config = config::from_file(file).unwrap_or_else(|e| panic!("{e}"));
    let address = config.listeners[0].address;
    let app = Arc::new(App::new(Arc::new(config)).expect("a usable configuration"));
    let executor = Arc::new(http_proxy(&Arc::new(ServerConf::default()), Proxy::new(Arc::clone(&app), Side::Main)));
    let listener = TcpListener::bind(address).expect("a free port");
    listener.set_nonblocking(true).expect("a socket option");
    for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
        let (executor, listener) = (Arc::clone(&executor), listener.try_clone().expect("a descriptor"));
        thread::spawn(move || {
            let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(accept(executor, listener));
        });
    }
    tokio::join!(app.fleet.run(), app.gate.run_ticks());
}

async fn accept(executor: Arc<HttpProxy<Proxy>>, listener: TcpListener) {
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            Handle::current().spawn(connection(Arc::clone(&executor), stream));
        }
    }
}

/// Serves all requests of one connection.
async fn connection(executor: Arc<HttpProxy<Proxy>>, stream: TcpStream) {
    let shutdown = watch::channel(false).1;
    let _ = stream.set_nodelay(true);
    let mut next = Some(ReusedHttpStream::new(Box::new(Stream::from(stream)), None));
    while let Some(reused) = next {
        let (stream, settings) = reused.consume();
        let mut session = ServerSession::new_http1(stream);
        session.set_keepalive(Some(0));
        if let Some(settings) = settings {
            settings.apply_to_session(&mut session);
        }
        session.enable_retry_buffering();
        next = executor.process_new_http(session, &shutdown).await;
    }
}
