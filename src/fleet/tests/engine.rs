//! A server that answers like vLLM, or misbehaves as the test says.

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::AUTHORIZATION;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

pub const METRICS: &str = include_str!("../../../tests/samples/vllm-0.32-metrics.txt");

pub struct Engine {
    pub address: SocketAddr,
    behaviour: Arc<Mutex<Behaviour>>,
    task: JoinHandle<()>,
}

pub struct Behaviour {
    pub health: StatusCode,
    /// Number of health checks that fail before the next succeeds.
    pub failures: usize,
    pub metrics: String,
    pub models: String,
    /// Other paths, with the answer for each.
    pub pages: Vec<(&'static str, String)>,
    /// Paths that the server does not have.
    pub lacks: Vec<&'static str>,
    /// Paths that are never answered.
    pub hangs: Vec<&'static str>,
    /// Values of `Authorization`, one for every request.
    pub keys: Vec<String>,
    asked: Vec<String>,
}

impl Engine {
    pub async fn start() -> Self {
        let behaviour = Behaviour {
            health: StatusCode::OK,
            failures: 0,
            metrics: METRICS.to_owned(),
            models: r#"{"object":"list","data":[]}"#.to_owned(),
            pages: Vec::new(),
            lacks: Vec::new(),
            hangs: Vec::new(),
            keys: Vec::new(),
            asked: Vec::new(),
        };
        let mut engine = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            behaviour: Arc::new(Mutex::new(behaviour)),
            task: tokio::spawn(async {}),
        };
        engine.listen().await;
        engine
    }

    /// Listens on the engine's address. The first time, the address is any free one.
    pub async fn listen(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        let app = Router::new().fallback(answer).with_state(Arc::clone(&self.behaviour));
        self.task = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    }

    /// Closes the listening socket: connections are refused from now on.
    pub async fn stop(&mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set(&self, change: impl FnOnce(&mut Behaviour)) {
        change(&mut self.behaviour.lock());
    }

    pub fn get<T>(&self, read: impl FnOnce(&Behaviour) -> T) -> T {
        read(&self.behaviour.lock())
    }

    /// A function that sets how far the engine's KV cache is filled, in permille.
    pub fn mover(&self) -> impl Fn(u32) + Send + 'static {
        let behaviour = Arc::clone(&self.behaviour);
        move |permille| {
            let fill = |line: &str| match line.strip_prefix("vllm:kv_cache_usage_perc{") {
                Some(rest) => format!(
                    "vllm:kv_cache_usage_perc{{{} {}\n",
                    rest.split(' ').next().unwrap(),
                    f64::from(permille % 1000) / 1000.0
                ),
                None => format!("{line}\n"),
            };
            let mut behaviour = behaviour.lock();
            behaviour.metrics = behaviour.metrics.lines().map(fill).collect();
        }
    }

    /// Number of requests for `path` that have come.
    pub fn asked(&self, path: &str) -> usize {
        self.get(|behaviour| behaviour.asked.iter().filter(|asked| *asked == path).count())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn answer(State(behaviour): State<Arc<Mutex<Behaviour>>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    let hangs = {
        let mut behaviour = behaviour.lock();
        let key = request.headers().get(AUTHORIZATION).map_or("", |key| key.to_str().unwrap());
        behaviour.keys.push(key.to_owned());
        behaviour.asked.push(path.clone());
        behaviour.hangs.iter().any(|hanging| path.ends_with(hanging))
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    let mut behaviour = behaviour.lock();
    if behaviour.lacks.iter().any(|lacking| path.ends_with(lacking)) {
        StatusCode::NOT_FOUND.into_response()
    } else if let Some((_, page)) = behaviour.pages.iter().find(|(at, _)| path == *at) {
        page.clone().into_response()
    } else if path.ends_with("/health") {
        if behaviour.failures > 0 {
            behaviour.failures -= 1;
            return StatusCode::INTERNAL_SERVER_ERROR.into_response();
        }
        behaviour.health.into_response()
    } else if path.ends_with("/metrics") {
        behaviour.metrics.clone().into_response()
    } else if path.ends_with("/v1/models") {
        behaviour.models.clone().into_response()
    } else {
        StatusCode::NOT_FOUND.into_response()
    }
}
