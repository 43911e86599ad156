//! A daemon with a temporary home, as a user would have one.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use aegis_client::Client;
use aegis_config::{Asset, Home, env, locate};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::BenchError;

const UP_DEADLINE: Duration = Duration::from_secs(30);
const DOWN_DEADLINE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

/// The daemon, its home, and its client.
pub(crate) struct Installation {
    home: TempDir,
    layout: Home,
    daemon: Child,
    kernel: Option<PathBuf>,
    pub(crate) client: Client,
}

impl Installation {
    /// Starts a daemon with these settings, as variables, and waits until it answers.
    pub(crate) async fn start(kernel: Option<&Path>, settings: &[(&str, &str)]) -> Result<Self, BenchError> {
        let home = tempfile::Builder::new()
            .prefix("aegis-bench-")
            .tempdir()
            .map_err(BenchError::io("make a home"))?;
        let layout = Home::resolve(Some(home.path().to_owned()))?;
        let program = locate(Asset::Daemon, None, &layout)?.path;
        let mut command = Command::new(program);
        command
            .arg("--home")
            .arg(home.path())
            // Another daemon may have the usual one.
            .env(env::ROUTER_ADDR, "127.0.0.1:0")
            .envs(settings.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if let Some(kernel) = kernel {
            command.arg("--kernel").arg(kernel);
        }
        let daemon = command.kill_on_drop(true).spawn().map_err(BenchError::io("start aegisd"))?;
        let client = Client::new(layout.socket());
        let started = Instant::now();
        while client.status().await.is_err() {
            if started.elapsed() > UP_DEADLINE {
                return Err(BenchError::Failed(format!("aegisd did not answer within {UP_DEADLINE:?}")));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(Self { home, layout, daemon, kernel: kernel.map(Path::to_owned), client })
    }

    /// Where it keeps things.
    pub(crate) fn layout(&self) -> &Home {
        &self.layout
    }

    /// Process id of the daemon.
    pub(crate) fn daemon_pid(&self) -> Option<u32> {
        self.daemon.id()
    }

    /// `aegis` of the same installation, on this home.
    pub(crate) fn aegis(&self) -> Result<Command, BenchError> {
        let this = std::env::current_exe().map_err(BenchError::io("find this program"))?;
        let mut command = Command::new(this.with_file_name("aegis"));
        command.env(env::HOME, self.home.path()).stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(kernel) = &self.kernel {
            command.env(env::KERNEL, kernel);
        }
        Ok(command)
    }

    /// Stops the daemon in order, so that no VM is left.
    pub(crate) async fn stop(mut self) -> Result<(), BenchError> {
        let mut down = self.aegis()?;
        down.arg("down");
        let ended = tokio::time::timeout(DOWN_DEADLINE, async {
            down.status().await?;
            self.daemon.wait().await
        });
        ended
            .await
            .map_err(|_| BenchError::Failed(format!("aegisd did not stop within {DOWN_DEADLINE:?}")))?
            .map_err(BenchError::io("stop aegisd"))?;
        Ok(())
    }
}
