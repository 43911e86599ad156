//! Start and end of a daemon. `main` runs one per process; tests may run several, each with its own home.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aegis_api::{RouterStatus, ShutdownMode};
use aegis_config::{
    AcceleratorSetting, Environment, Home, HomeError, Settings, TemplatesSetting, host_memory_mib,
};
use aegis_image::ImageError;
use aegis_lifecycle::ports::{self, Adoption, LaunchError, Launched};
use aegis_lifecycle::record::{InstanceSpec, Record};
use aegis_lifecycle::{Defaults, Limits, Manager, Ports};
use aegis_registry::{CredentialStore, Mirror, Registry, registry_host};
use aegis_router::{Gate, HttpRouter};
use aegis_store::{Store, StoreError};
use aegis_types::{InstanceId, VmId};
use async_trait::async_trait;
use tokio::net::UnixListener;
use tokio::sync::{Notify, watch};
use tokio::task::{self, JoinHandle};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accel::Accel;
use crate::assets::{AssetFlags, Assets};
use crate::backends::Backends;
use crate::digests::Digests;
use crate::exposes::Exposes;
use crate::http::images::collect_garbage;
use crate::http::{self, App, Ids};
use crate::images::{Images, Provider, Pulls};
use crate::launcher::machine::Machines;
use crate::launcher::{Launcher, files};
use crate::lock::{HomeLock, LockError};
use crate::logs::LogStore;
use crate::networks::Networks;
use crate::process::Processes;
use crate::registry::{StoredRegistry, to_record};
use crate::rotate::Rotation;
use crate::secrets::Secrets;
use crate::socket;
use crate::templates::TemplateOptions;
use crate::text::chain;
use crate::workspaces::Workspaces;

/// Time for the commands of instances between SIGTERM and SIGKILL when the daemon ends.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Time for open connections to take the rest of their answers when everything else has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(2);

/// Time for the processes of workers to end after their VMs; longer than a killed process takes.
const WORKERS_DEADLINE: Duration = Duration::from_secs(30);

/// What a daemon needs to know.
pub struct DaemonOptions {
    /// Its home, which is created if need be.
    pub home: Home,
    /// Settings.
    pub settings: Settings,
    /// Files named on the command line.
    pub assets: AssetFlags,
    /// Docker's `config.json`, for the logins that the user has there.
    pub docker_config: Option<PathBuf>,
    /// What starts VMs; worker processes when absent.
    pub launcher: Option<Arc<dyn ports::Launcher>>,
    /// Time for the commands of instances between SIGTERM and SIGKILL at [`Running::shutdown`].
    pub stop_grace: Duration,
}

impl DaemonOptions {
    /// Worker processes with the files of the installation.
    pub fn new(home: Home, settings: Settings) -> Self {
        Self {
            home,
            settings,
            assets: AssetFlags::default(),
            docker_config: None,
            launcher: None,
            stop_grace: STOP_GRACE,
        }
    }
}

/// The daemon could not start; nothing is left running.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The home cannot be created.
    #[error(transparent)]
    Home(#[from] HomeError),
    /// Another daemon has the home.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The registry cannot be used.
    #[error(transparent)]
    Registry(#[from] StoreError),
    /// The image store cannot be used.
    #[error("cannot open the image store")]
    Images(#[from] ImageError),
    /// A mirror in the settings is none.
    #[error("setting `images.mirrors`: {0}")]
    Mirror(String),
    /// Files or sockets in the home.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// With what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn failed(action: &'static str, path: PathBuf) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Io { action, path, source }
}

/// The daemon.
#[derive(Debug)]
pub struct Daemon;

/// A daemon that serves its API. [`Running::shutdown`] ends it in order; dropping it instead leaves VMs alone, and the
/// next daemon takes them over.
pub struct Running {
    home: Home,
    app: Arc<App>,
    registry: Store,
    /// Unless another launcher was given.
    workers: Option<Arc<Launcher>>,
    /// Unless its address is taken.
    http_router: Option<HttpRouter>,
    stop_grace: Duration,
    server: JoinHandle<()>,
    stop_accepting: Arc<Notify>,
    _lock: HomeLock,
}

impl Daemon {
    /// Takes over what an earlier daemon left and serves the API. The pid file appears when the API listens.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(options: DaemonOptions) -> Result<Running, StartError> {
        let DaemonOptions { home, settings, assets, docker_config, launcher, stop_grace } = options;
        let credentials = CredentialStore::new(home.registries());
        let images_from = registry_client(&settings, &credentials, docker_config)?;
        Launcher::check_home(&home).map_err(failed("use the home", home.root().to_owned()))?;
        home.ensure()?;
        let lock = HomeLock::take(&home)?;
        files::remove_file(&home.pid_file()).map_err(failed("remove", home.pid_file()))?;
        let registry = blocking({
            let path = home.database();
            move || Store::open(&path)
        })
        .await?;
        let records: Vec<Record> = registry.load().await?.into_iter().map(to_record).collect();
        let ids: Vec<InstanceId> = records.iter().map(|record| record.spec.id.clone()).collect();
        let logs = blocking({
            let (dir, ids, lock) = (home.logs(), ids.clone(), lock.clone());
            let rotation = Rotation::from(&settings);
            move || LogStore::open(&dir, &ids, rotation, lock).map_err(failed("open the logs in", dir))
        })
        .await?;
        let logs = Arc::new(logs);
        let assets = Arc::new(Assets::new(home.clone(), assets));
        let digests = blocking({
            let home = home.clone();
            move || Arc::new(Digests::open(&home))
        })
        .await;
        let images = blocking({
            let (home, assets, digests) = (home.clone(), Arc::clone(&assets), Arc::clone(&digests));
            move || Images::open(home, assets, digests)
        })
        .await?;
        let images = Arc::new(images);
        let pulls = Pulls::new(Arc::clone(&images), images_from.clone());
        let accel = Arc::new(Accel::new(home.clone(), Arc::clone(&assets), &settings.accelerator));
        let networks = blocking({
            let home = home.clone();
            move || Arc::new(Networks::new(home, &Environment::process()))
        })
        .await;
        let workspaces = Arc::new(Workspaces::new(home.clone()));
        let (reaping, known) = (Arc::clone(&workspaces), ids.clone());
        let reaped = blocking(move || reaping.reap(&known)).await;
        reaped.map_err(failed("look through", home.workspaces()))?;
        let (launcher, workers): (Arc<dyn ports::Launcher>, _) = match launcher {
            Some(launcher) => (launcher, None),
            None => {
                let machines = Machines {
                    default_disk: settings.default_disk.value,
                    home: home.clone(),
                    assets: Arc::clone(&assets),
                    images: Arc::clone(&images),
                    digests,
                    boot_timeout: settings.boot_timeout.value,
                };
                let launcher = Launcher::new(
                    machines,
                    Arc::clone(&accel),
                    Arc::clone(&networks),
                    Arc::clone(&workspaces),
                    template_options(&settings),
                );
                launcher.reap_orphans(&ids).await.map_err(failed("look through", home.run()))?;
                let resumed = launcher.resume_background_work(ids.clone()).await;
                resumed.map_err(failed("look through", home.templates()))?;
                let launcher = Arc::new(launcher);
                (Arc::clone(&launcher) as Arc<dyn ports::Launcher>, Some(launcher))
            }
        };
        let provider =
            Provider::new(Arc::clone(&images), Arc::clone(&pulls), Arc::clone(&logs), settings.pull.value);
        let provider = Arc::new(provider);
        let launcher =
            Arc::new(Complete { launcher, provider: Arc::clone(&provider), logs: Arc::clone(&logs) });
        let key_store = settings.key_store.value;
        // Before the logs of live instances go on: their values are to be kept out of them.
        let secrets = Secrets::open(&home, key_store, registry.clone(), Arc::clone(&logs)).await?;
        let secrets = Arc::new(secrets);
        let ports = Ports {
            launcher,
            injector: Arc::new(Processes { images: Arc::clone(&images), secrets: Arc::clone(&secrets) }),
            registry: Arc::new(StoredRegistry(registry.clone())),
            logs: logs.clone(),
        };
        let manager = Manager::new(ports, limits(&settings));
        manager.restore(records).await;
        let backends = Arc::new(Backends::default());
        let gate = Gate::new(Arc::clone(&backends) as _, aegis_router::Limits::default());
        let exposes = Arc::new(Exposes::new(Arc::clone(&gate), registry.clone()));
        backends.introduce(manager.clone(), &exposes);
        open_ports(&exposes, &manager, &logs).await?;
        let (http_router, router) = open_router(gate, &settings);
        let tasks = TaskTracker::new();
        if settings.accelerator.value == AcceleratorSetting::Auto {
            // Early, so that the first boot does not wait for a trial. Missing files are reported by that boot.
            let accel = Arc::clone(&accel);
            tasks.spawn(async move { drop(accel.decide().await.cloned()) });
        }
        let app = Arc::new(App {
            manager,
            logs,
            images,
            pulls,
            provider,
            registry: images_from,
            credentials,
            assets,
            accel,
            home,
            settings,
            exposes,
            networks,
            secrets,
            workspaces,
            router,
            templates: workers.as_ref().map(|launcher| Arc::clone(launcher.templates())),
            ending: watch::Sender::new(None),
            tasks,
            garbage: Notify::new(),
            closing: CancellationToken::new(),
            ids: Ids::default(),
        });
        app.tasks.spawn(collect_garbage(Arc::clone(&app)));
        // What the last daemon did not come to.
        app.garbage.notify_one();
        Running::serve(app, registry, workers, http_router, stop_grace, lock)
    }
}

impl Running {
    fn serve(
        app: Arc<App>,
        registry: Store,
        workers: Option<Arc<Launcher>>,
        http_router: Option<HttpRouter>,
        stop_grace: Duration,
        lock: HomeLock,
    ) -> Result<Running, StartError> {
        let home = app.home.clone();
        let listen = || {
            let listener = socket::bind_in_public(&home.socket(), &home.data())?;
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        };
        let listener = listen().map_err(failed("listen on", home.socket()))?;
        let stop_accepting = Arc::new(Notify::new());
        let stopped = Arc::clone(&stop_accepting);
        let router = http::router(Arc::clone(&app));
        let server = tokio::spawn(async move {
            let serving =
                axum::serve(listener, router).with_graceful_shutdown(async move { stopped.notified().await });
            if let Err(error) = serving.await {
                tracing::error!(%error, "the API cannot be served any more");
            }
        });
        let pid = format!("{}\n", std::process::id());
        files::write_atomically(&home.pid_file(), pid.as_bytes())
            .map_err(failed("write", home.pid_file()))?;
        tracing::info!(socket = %home.socket().display(), "listening");
        Ok(Running {
            home,
            app,
            registry,
            workers,
            http_router,
            stop_grace,
            server,
            stop_accepting,
            _lock: lock,
        })
    }

    /// The socket of the API.
    pub fn socket(&self) -> PathBuf {
        self.home.socket()
    }

    /// The home.
    pub fn home(&self) -> &Path {
        self.home.root()
    }

    /// Waits until a client of the API asks for the end, and says what is to become of running instances.
    pub async fn asked_to_end(&self) -> ShutdownMode {
        let mut ending = self.app.ending.subscribe();
        let asked = ending.wait_for(Option::is_some).await.map(|mode| *mode);
        asked.ok().flatten().unwrap_or_default()
    }

    /// Accepts no more connections, ends all VMs, ends open streams and removes socket and pid file.
    pub async fn shutdown(self, mode: ShutdownMode) {
        let Running {
            home,
            app,
            registry,
            workers,
            http_router,
            stop_grace,
            mut server,
            stop_accepting,
            _lock,
        } = self;
        remove(&home.socket());
        stop_accepting.notify_one();
        if let Some(router) = http_router {
            router.shut_down().await;
        }
        app.exposes.shut_down().await;
        if let Some(workers) = &workers
            && timeout(WORKERS_DEADLINE, workers.templates().shutdown()).await.is_err()
        {
            tracing::error!("the making of a template did not end");
        }
        app.manager.shutdown(stop_grace, mode == ShutdownMode::Hibernate).await;
        // Nobody waits for them any more.
        if timeout(DRAIN_DEADLINE, app.pulls.shutdown()).await.is_err() {
            tracing::info!("an image is still being made; the next start removes what is left of it");
        }
        app.closing.cancel();
        app.logs.close().await;
        app.tasks.close();
        let drained = async { tokio::join!(app.tasks.wait(), &mut server) };
        if timeout(DRAIN_DEADLINE, drained).await.is_err() {
            tracing::info!("cutting off connections whose clients do not read");
            server.abort();
        }
        if let Some(workers) = workers
            && timeout(WORKERS_DEADLINE, workers.workers_gone()).await.is_err()
        {
            tracing::error!("some workers did not end");
        }
        registry.close().await;
        remove(&home.pid_file());
    }
}

fn limits(settings: &Settings) -> Limits {
    Limits {
        defaults: Defaults {
            pause_after: settings.pause_after.value,
            hibernate_after: settings.hibernate_after.value,
        },
        ram_budget: settings.ram_budget.value.mib(host_memory_mib()),
    }
}

fn template_options(settings: &Settings) -> TemplateOptions {
    TemplateOptions {
        enabled: settings.templates.value == TemplatesSetting::Auto,
        age_max: settings.templates_max_age.value,
        bytes_max: settings.templates_max_mib.value << 20,
    }
}

/// Listens on the ports of enabled instances. One that cannot be had is told in the log of its instance.
async fn open_ports(exposes: &Exposes, manager: &Manager, logs: &LogStore) -> Result<(), StartError> {
    let enabled = |id: &InstanceId| manager.find(id.as_str()).is_some_and(|i| i.status().enabled);
    for (id, problem) in exposes.restore(enabled).await? {
        tracing::warn!(instance = %id, "{problem}");
        ports::LogSink::system(logs, &id, ports::SystemMessage::Error(problem)).await;
    }
    Ok(())
}

/// The HTTP router, if it can be had: everything else works without it.
fn open_router(gate: Arc<Gate>, settings: &Settings) -> (Option<HttpRouter>, RouterStatus) {
    match HttpRouter::bind(gate, settings.router_addr.value) {
        Ok(router) => {
            let address = Some(router.local_addr());
            (Some(router), RouterStatus { address, problem: None })
        }
        Err(error) => {
            let problem = chain(&error);
            tracing::warn!("{problem}; ports of instances work all the same");
            (None, RouterStatus { address: None, problem: Some(problem) })
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(%error, path = %path.display(), "cannot remove a file");
        }
        _ => {}
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    task::spawn_blocking(work).await.expect("opening files does not panic")
}

/// How images are pulled.
fn registry_client(
    settings: &Settings,
    credentials: &CredentialStore,
    docker_config: Option<PathBuf>,
) -> Result<Registry, StartError> {
    let mut options = aegis_registry::Options::new(credentials.clone());
    options.docker_config = docker_config;
    options.proxies = Environment::process().proxies();
    options.extra_roots = settings.ca_file.value.clone();
    for (registry, url) in settings.mirrors.value.iter() {
        let host = registry_host(registry).map_err(|e| StartError::Mirror(e.to_string()))?;
        let mirror = Mirror::parse(url).map_err(|e| StartError::Mirror(e.to_string()))?;
        options.mirrors.entry(host).or_default().push(mirror);
    }
    Ok(Registry::new(options))
}

/// A launcher for which images come from elsewhere and the log is one of an instance's files.
struct Complete {
    launcher: Arc<dyn ports::Launcher>,
    provider: Arc<Provider>,
    logs: Arc<LogStore>,
}

#[async_trait]
impl ports::Launcher for Complete {
    async fn provide(&self, spec: &InstanceSpec) -> Result<(), LaunchError> {
        self.provider.provide(spec).await
    }

    async fn launch(&self, spec: &InstanceSpec, vm: &VmId) -> Result<Launched, LaunchError> {
        self.launcher.launch(spec, vm).await
    }

    async fn has_saved(&self, id: &InstanceId) -> bool {
        self.launcher.has_saved(id).await
    }

    async fn discard_saved(&self, id: &InstanceId) {
        self.launcher.discard_saved(id).await;
    }

    async fn adopt(&self, id: &InstanceId) -> Adoption {
        self.launcher.adopt(id).await
    }

    async fn clean_up(&self, id: &InstanceId) {
        self.launcher.clean_up(id).await;
    }

    async fn remove(&self, spec: &InstanceSpec) -> io::Result<()> {
        self.launcher.remove(spec).await?;
        self.logs.remove(&spec.id).await
    }
}
