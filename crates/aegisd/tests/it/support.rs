//! A daemon with a temporary home, and a small HTTP client for its socket.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aegis_api::{ErrorBody, InstanceInfo, LogEntry};
use aegis_config::{Home, Settings};
use aegis_types::{Accelerator, InstanceState};
use aegisd::{Daemon, DaemonOptions, Running, StartError};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::UnixStream;

use crate::fake::FakeLauncher;

/// No test waits as long as this for what it expects.
pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct TestDaemon {
    pub(crate) dir: TempDir,
    pub(crate) launcher: Arc<FakeLauncher>,
    pub(crate) running: Running,
}

pub(crate) fn home(dir: &Path) -> Home {
    Home::resolve(Some(dir.join("home"))).unwrap()
}

pub(crate) async fn start(dir: &Path, launcher: Arc<FakeLauncher>) -> Result<Running, StartError> {
    let home = home(dir);
    fs::create_dir_all(home.lib()).unwrap();
    fs::write(home.lib().join("base.erofs"), b"image").unwrap();
    let mut settings = Settings::default();
    settings.router_addr.value = (std::net::Ipv4Addr::LOCALHOST, 0).into();
    settings.pull.value = aegis_types::PullPolicy::Never;
    settings.accelerator.value = aegis_config::AcceleratorSetting::Fixed(Accelerator::Tcg);
    let mut options = DaemonOptions::new(home, settings);
    options.launcher = Some(launcher);
    options.stop_grace = Duration::from_secs(1);
    Daemon::start(options).await
}

impl TestDaemon {
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let launcher = Arc::new(FakeLauncher::default());
        let running = start(dir.path(), Arc::clone(&launcher)).await.unwrap();
        Self { dir, launcher, running }
    }

    /// Sends a request and returns the answer as soon as its head is there.
    pub(crate) async fn send(&self, method: &str, path: &str, body: &str) -> Response<Incoming> {
        let stream = UnixStream::connect(self.running.socket()).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let body = Full::new(Bytes::from(body.to_owned()));
        let request = Request::builder().method(method).uri(path).header("host", "aegis").body(body).unwrap();
        sender.send_request(request).await.unwrap()
    }

    /// Sends a request and reads its whole answer.
    pub(crate) async fn text(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let response = self.send(method, path, body).await;
        let status = response.status().as_u16();
        let bytes =
            tokio::time::timeout(DEADLINE, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
        (status, String::from_utf8(bytes.into()).unwrap())
    }

    pub(crate) async fn ok<T: DeserializeOwned>(&self, method: &str, path: &str, body: &str) -> T {
        let (status, text) = self.text(method, path, body).await;
        assert!((200..300).contains(&status), "{method} {path}: {status} {text}");
        serde_json::from_str(&text).unwrap()
    }

    pub(crate) async fn refused(&self, method: &str, path: &str, body: &str) -> (u16, ErrorBody) {
        let (status, text) = self.text(method, path, body).await;
        (
            status,
            serde_json::from_str(&text).unwrap_or_else(|e| panic!("{method} {path}: {status} {text}: {e}")),
        )
    }

    /// An NDJSON answer to its end.
    pub(crate) async fn lines(&self, method: &str, path: &str, body: &str) -> Vec<Value> {
        let (status, text) = self.text(method, path, body).await;
        assert_eq!(status, 200, "{text}");
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// Creates an instance and waits until it runs.
    pub(crate) async fn create(&self, handle: &str, command: &[&str]) -> String {
        let body = serde_json::json!({ "command": command, "handle": handle }).to_string();
        let created: aegis_api::CreatedInstance = self.ok("POST", "/v1/instances", &body).await;
        self.until(handle, InstanceState::Running).await;
        created.id.into()
    }

    pub(crate) async fn info(&self, target: &str) -> InstanceInfo {
        self.ok("GET", &aegis_api::paths::instance(target), "").await
    }

    /// Asks until the instance has this state; asking gives the daemon its turn.
    pub(crate) async fn until(&self, target: &str, state: InstanceState) -> InstanceInfo {
        let wait = async {
            loop {
                let info = self.info(target).await;
                if info.state == state {
                    return info;
                }
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap()
    }
}

/// Lines of a streamed answer, one at a time.
pub(crate) struct LineStream {
    body: Incoming,
    buffer: Vec<u8>,
}

impl LineStream {
    pub(crate) fn new(response: Response<Incoming>) -> Self {
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], aegis_api::NDJSON);
        Self { body: response.into_body(), buffer: Vec::new() }
    }

    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Option<T> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.unwrap()?;
            self.buffer.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    pub(crate) async fn entry(&mut self) -> LogEntry {
        self.next().await.expect("the stream goes on")
    }
}
