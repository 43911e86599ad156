//! The real daemon inside a test.

use std::future::Future;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use aegis_api::ShutdownMode;
use aegis_client::Client;
use aegis_config::{AcceleratorSetting, Setting, Settings, TemplatesSetting};
use aegis_types::{Accelerator, PullPolicy};
use aegisd::{Daemon, DaemonOptions, Running, StartError};
use rustix::process::{WaitOptions, waitpid};
use tokio::runtime::Runtime;

use crate::TestHome;
use crate::home::open_files;

/// Between two looks at something that tells nobody when it happens.
const POLL: Duration = Duration::from_millis(1);
/// Time for what is in the middle of something when the daemon is dropped.
const DROP_DEADLINE: Duration = Duration::from_secs(60);

/// A daemon on a runtime of its own, so that it can be dropped as a crash would.
pub struct TestDaemon {
    /// Both are there until the daemon ends.
    runtime: Option<Runtime>,
    running: Option<Running>,
    socket: PathBuf,
    home: PathBuf,
}

impl TestDaemon {
    /// Starts a daemon in this home.
    ///
    /// # Errors
    /// As for [`Daemon::start`].
    pub async fn start(home: &TestHome) -> Result<Self, StartError> {
        Self::start_with(home, |_| {}).await
    }

    /// The same with other options.
    ///
    /// # Errors
    /// As for [`Daemon::start`].
    ///
    /// # Panics
    /// There is no room for threads.
    pub async fn start_with(
        home: &TestHome,
        change: impl FnOnce(&mut DaemonOptions),
    ) -> Result<Self, StartError> {
        let settings = Settings {
            accelerator: Setting::default_value(AcceleratorSetting::Fixed(Accelerator::Tcg)),
            // The fake VMM cannot save, so there is nothing to make templates with; and daemons run side by side.
            templates: Setting::default_value(TemplatesSetting::Off),
            // No test asks the registries of others.
            pull: Setting::default_value(PullPolicy::Never),
            router_addr: Setting::default_value((Ipv4Addr::LOCALHOST, 0).into()),
            ..Settings::default()
        };
        let root = home.home().root().to_owned();
        let mut options = DaemonOptions::new(home.home().clone(), settings);
        options.assets = home.assets();
        change(&mut options);
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        let runtime = runtime.worker_threads(2).enable_all().build().expect("threads for a runtime");
        match on(&runtime, Daemon::start(options)).await {
            Ok(running) => Ok(Self {
                socket: running.socket(),
                home: root,
                runtime: Some(runtime),
                running: Some(running),
            }),
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }

    /// A client of it.
    pub fn client(&self) -> Client {
        Client::new(&self.socket)
    }

    /// Ends it in order.
    ///
    /// # Panics
    /// It does not end.
    pub async fn shut_down(mut self) {
        if let (Some(runtime), Some(running)) = (&self.runtime, self.running.take()) {
            on(runtime, running.shutdown(ShutdownMode::Stop)).await;
        }
        self.drop_runtime().await;
    }

    /// Drops it wherever it is, as SIGKILL would; its workers live on.
    ///
    /// # Panics
    /// It does not end.
    pub async fn crash(mut self, home: &TestHome) {
        let workers = home.workers();
        self.drop_runtime().await;
        // The orphans of a process that died are reaped by init.
        for worker in workers {
            thread::spawn(move || {
                // What was reaped already needs nobody.
                let _ = waitpid(Some(worker), WaitOptions::empty());
            });
        }
    }

    /// Returns when nothing of the daemon is left in this process, as if it had been one of its own.
    async fn drop_runtime(&mut self) {
        let (runtime, running) = (self.runtime.take(), self.running.take());
        let dropping = tokio::task::spawn_blocking(move || {
            drop(running);
            runtime.map(|runtime| runtime.shutdown_timeout(DROP_DEADLINE))
        });
        dropping.await.expect("dropping a daemon does not panic");
        // Threads of its own hold the lock of the home until they have ended.
        let gone = async {
            while !open_files(&self.home).expect("/proc is there").is_empty() {
                tokio::time::sleep(POLL).await;
            }
        };
        tokio::time::timeout(DROP_DEADLINE, gone).await.expect("a dropped daemon closes its files");
    }
}

impl Drop for TestDaemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Its own drop would wait, which async code must not.
            runtime.shutdown_background();
        }
    }
}

/// Runs a future on another runtime; the test goes on meanwhile.
async fn on<T: Send + 'static>(runtime: &Runtime, work: impl Future<Output = T> + Send + 'static) -> T {
    runtime.spawn(work).await.expect("the daemon does not panic")
}
