//! The calls.

use std::io;
use std::path::{Path, PathBuf};

use aegis_api::{
    Attach, AttachedExec, AuditEntry, BuildTemplate, CreateInstance, CreatedInstance, DaemonStats,
    DaemonStatus, ExecRequest, ExposeReply, ExposeRequest, ImageDeleted, ImageImported, ImageInfo,
    ImageSummary, ImageUsage, InstanceInfo, InstanceSecrets, InstanceSecretsReply, InstanceSummary,
    KeepaliveRequest, KeyRotated, NetRuleRequest, NetStatus, PruneImages, PruneReply, PruneTemplates,
    PrunedImages, PrunedTemplates, PullImage, RegistryLogin, RegistrySummary, RevealedSecret, STREAMS,
    SecretSummary, SetSecret, ShutdownMode, ShutdownRequest, StateReply, TemplateSummary, UpdateInstance,
    UpdatedInstance, WaitQuery, WorkspaceEntry, WorkspaceSummary, WorkspaceUsage, paths,
};
use aegis_types::{CopyReport, FileStat, GuestPort, ImageName, InstanceState, SecretName};
use bytes::{Bytes, BytesMut};
use futures::stream::{try_unfold, unfold};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::Method;
use hyper::body::Frame;
use jiff::Timestamp;
use serde::Serialize;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::mpsc;

use crate::ClientError;
use crate::connection::{Answer, RequestBody, request, upgrade};
use crate::files::{Bytestream, Download};
use crate::process::Process;
use crate::stream::{ExecEvents, LogEntries, NetEvents, PullEvents};

const CONSOLE_MAX: usize = 64 << 20;
const WORKSPACE_FILE_MAX: usize = 10 << 20;
const METRICS_MAX: usize = 64 << 20;
const IMPORT_CHUNK: usize = 256 << 10;

/// A client of one daemon. Cheap to clone; nothing is connected before a call.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

/// What a create request did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Creation {
    /// A new instance was created.
    Created(CreatedInstance),
    /// The stopped instance of that name was started.
    Restarted(CreatedInstance),
}

/// Something to do with an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Boots it; does not wait for the boot.
    Start,
    /// Stops its VM; returns when it is stopped.
    Stop,
    /// Stops and boots it; does not wait for the boot.
    Restart,
    /// Stops it and forbids waking it.
    Disable,
    /// Halts its CPUs.
    Pause,
    /// Lets its CPUs go on.
    Resume,
    /// Saves its memory and ends its VM; returns when that is done.
    Hibernate,
}

impl Action {
    fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Restart => "restart",
            Self::Disable => "disable",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Hibernate => "hibernate",
        }
    }
}

/// Which entries of a log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// After the stored entries, wait for more until the instance is deleted.
    pub follow: bool,
    /// The instance is not idle while the log is followed.
    pub attach: bool,
    /// Only entries after this time.
    pub since: Option<Timestamp>,
    /// Only so many of the newest stored entries.
    pub tail: Option<u64>,
    /// Only entries of this exec.
    pub exec_id: Option<String>,
}

impl LogQuery {
    fn path(&self, target: &str) -> String {
        let mut query = Vec::new();
        if self.follow {
            query.push("follow=1".to_owned());
        }
        if self.attach {
            query.push("attach=1".to_owned());
        }
        if let Some(since) = self.since {
            query.push(format!("since={}", paths::encode(&since.to_string())));
        }
        if let Some(tail) = self.tail {
            query.push(format!("tail={tail}"));
        }
        if let Some(exec_id) = &self.exec_id {
            query.push(format!("exec_id={}", paths::encode(exec_id)));
        }
        let path = paths::logs(target);
        if query.is_empty() { path } else { format!("{path}?{}", query.join("&")) }
    }
}

/// Every call fails with [`ClientError`]; refusals of the daemon are [`ClientError::Api`].
#[allow(clippy::missing_errors_doc, reason = "said once for all calls")]
impl Client {
    /// A client of the daemon that listens on this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// Socket of the daemon.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The daemon and what it would use for the next VM.
    pub async fn status(&self) -> Result<DaemonStatus, ClientError> {
        self.get_path(paths::STATUS).await?.json().await
    }

    /// Creates an instance, or starts the stopped one of that name. Does not wait for the boot.
    pub async fn create(&self, instance: &CreateInstance) -> Result<Creation, ClientError> {
        let answer = self.post(paths::INSTANCES, instance).await?;
        let created = answer.status() == 201;
        let instance = answer.json().await?;
        Ok(if created { Creation::Created(instance) } else { Creation::Restarted(instance) })
    }

    /// All instances, or those in one state.
    pub async fn list(&self, state: Option<InstanceState>) -> Result<Vec<InstanceSummary>, ClientError> {
        let path = match state {
            Some(state) => format!("{}?state={state}", paths::INSTANCES),
            None => paths::INSTANCES.to_owned(),
        };
        self.get_path(&path).await?.json().await
    }

    /// One instance, by id or name.
    pub async fn get(&self, target: &str) -> Result<InstanceInfo, ClientError> {
        self.get_path(&paths::instance(target)).await?.json().await
    }

    /// Does something with an instance.
    pub async fn action(&self, target: &str, action: Action) -> Result<StateReply, ClientError> {
        let path = paths::action(target, action.as_str());
        self.request(Method::POST, &path, empty()).await?.json().await
    }

    /// Changes what an instance is asked for.
    pub async fn update(
        &self,
        target: &str,
        update: &UpdateInstance,
    ) -> Result<UpdatedInstance, ClientError> {
        self.send_json(Method::PATCH, &paths::instance(target), update).await?.json().await
    }

    /// Deletes an instance and everything it has; returns when it is gone.
    pub async fn delete(&self, target: &str) -> Result<StateReply, ClientError> {
        self.request(Method::DELETE, &paths::instance(target), empty()).await?.json().await
    }

    /// Deletes instances that have been stopped for longer than a duration such as `7d`.
    pub async fn prune(&self, older_than: &str) -> Result<PruneReply, ClientError> {
        let path = format!("{}?older_than={}", paths::PRUNE, paths::encode(older_than));
        self.request(Method::POST, &path, empty()).await?.json().await
    }

    /// Runs a command in an instance, which is woken if need be.
    pub async fn exec(&self, target: &str, exec: &ExecRequest) -> Result<ExecEvents, ClientError> {
        self.post(&paths::exec(target), exec).await.map(ExecEvents::new)
    }

    /// Runs a command with streams in an instance, which is woken if need be.
    pub async fn exec_attached(&self, target: &str, exec: &AttachedExec) -> Result<Process, ClientError> {
        self.streams(&paths::exec_attach(target), exec).await
    }

    /// Attaches to the own command of an instance, which is woken if need be.
    pub async fn attach(&self, target: &str, attach: &Attach) -> Result<Process, ClientError> {
        self.streams(&paths::attach(target), attach).await
    }

    /// The log of an instance.
    pub async fn logs(&self, target: &str, query: &LogQuery) -> Result<LogEntries, ClientError> {
        self.get_path(&query.path(target)).await.map(LogEntries::new)
    }

    /// The newest part of what the guest's kernel wrote to its console.
    pub async fn console(&self, target: &str) -> Result<Bytes, ClientError> {
        self.get_path(&paths::console(target)).await?.bytes(CONSOLE_MAX).await
    }

    /// What an instance may reach.
    pub async fn net(&self, target: &str) -> Result<NetStatus, ClientError> {
        self.get_path(&paths::net(target)).await?.json().await
    }

    /// Changes what an instance may reach.
    pub async fn add_net_rule(&self, target: &str, rule: &NetRuleRequest) -> Result<NetStatus, ClientError> {
        self.post(&paths::net_rules(target), rule).await?.json().await
    }

    /// What an instance tried to reach: everything, or what was denied of it; then more until it is deleted, if that is
    /// to be followed.
    pub async fn net_log(&self, target: &str, denied: bool, follow: bool) -> Result<NetEvents, ClientError> {
        let switch = |on: bool| if on { '1' } else { '0' };
        let path = format!("{}?denied={}&follow={}", paths::net_log(target), switch(denied), switch(follow));
        self.get_path(&path).await.map(NetEvents::new)
    }

    /// Makes a guest port reachable from the host.
    pub async fn expose(&self, target: &str, expose: &ExposeRequest) -> Result<ExposeReply, ClientError> {
        self.post(&paths::expose(target), expose).await?.json().await
    }

    /// Undoes [`Client::expose`].
    pub async fn unexpose(&self, target: &str, port: GuestPort) -> Result<StateReply, ClientError> {
        self.request(Method::DELETE, &paths::exposed(target, port), empty()).await?.json().await
    }

    /// Takes or renews the lease of an instance.
    pub async fn keepalive(&self, target: &str, lease: &KeepaliveRequest) -> Result<StateReply, ClientError> {
        self.post(&paths::keepalive(target), lease).await?.json().await
    }

    /// Gives up the lease of an instance.
    pub async fn release(&self, target: &str) -> Result<StateReply, ClientError> {
        self.request(Method::DELETE, &paths::keepalive(target), empty()).await?.json().await
    }

    /// Waits for what an instance does. [`aegis_api::ErrorCode::Timeout`] means that it did not.
    pub async fn wait(&self, target: &str, query: &WaitQuery) -> Result<StateReply, ClientError> {
        let mut path = format!("{}?for={}", paths::wait(target), query.goal.as_str());
        if let Some(port) = query.port {
            path.push_str(&format!("&port={port}"));
        }
        if let Some(ms) = query.timeout_ms {
            path.push_str(&format!("&timeout_ms={ms}"));
        }
        self.get_path(&path).await?.json().await
    }

    /// Numbers of every instance.
    pub async fn stats(&self) -> Result<DaemonStats, ClientError> {
        self.get_path(paths::STATS).await?.json().await
    }

    /// The numbers in the text format of Prometheus.
    pub async fn metrics(&self) -> Result<Bytes, ClientError> {
        self.get_path(paths::METRICS).await?.bytes(METRICS_MAX).await
    }

    /// All templates.
    pub async fn templates(&self) -> Result<Vec<TemplateSummary>, ClientError> {
        self.get_path(paths::TEMPLATES).await?.json().await
    }

    /// Workspaces, by name.
    pub async fn workspaces(&self) -> Result<Vec<WorkspaceSummary>, ClientError> {
        self.get_path(paths::WORKSPACES).await?.json().await
    }

    /// Counts what a workspace takes up.
    pub async fn workspace_usage(&self, name: &str) -> Result<WorkspaceUsage, ClientError> {
        self.get_path(&paths::workspace_usage(name)).await?.json().await
    }

    /// The content of a file of an instance's workspace, by its path below it.
    pub async fn workspace_file(&self, target: &str, path: &str) -> Result<Bytes, ClientError> {
        self.get_path(&paths::workspace_file(target, path)).await?.bytes(WORKSPACE_FILE_MAX).await
    }

    /// Replaces a file of an instance's workspace.
    pub async fn write_workspace_file(
        &self,
        target: &str,
        path: &str,
        content: Bytes,
    ) -> Result<StateReply, ClientError> {
        let body = Full::from(content).map_err(|never| match never {}).boxed_unsync();
        self.request(Method::POST, &paths::workspace_file(target, path), body).await?.json().await
    }

    /// What is in a directory of an instance's workspace.
    pub async fn workspace_tree(&self, target: &str, path: &str) -> Result<Vec<WorkspaceEntry>, ClientError> {
        self.get_path(&paths::workspace_tree(target, path)).await?.json().await
    }

    /// Deletes a workspace that no instance mounts.
    pub async fn delete_workspace(&self, name: &str) -> Result<StateReply, ClientError> {
        self.request(Method::DELETE, &paths::workspace(name), empty()).await?.json().await
    }

    /// Secrets, by name.
    pub async fn secrets(&self) -> Result<Vec<SecretSummary>, ClientError> {
        self.get_path(paths::SECRETS).await?.json().await
    }

    /// Stores a secret, in place of an older one.
    pub async fn set_secret(
        &self,
        name: &SecretName,
        secret: &SetSecret,
    ) -> Result<SecretSummary, ClientError> {
        self.send_json(Method::PUT, &paths::secret(name.as_str()), secret).await?.json().await
    }

    /// Deletes a secret.
    pub async fn delete_secret(&self, name: &SecretName) -> Result<StateReply, ClientError> {
        self.request(Method::DELETE, &paths::secret(name.as_str()), empty()).await?.json().await
    }

    /// The value of a secret.
    pub async fn reveal_secret(&self, name: &SecretName) -> Result<RevealedSecret, ClientError> {
        self.request(Method::POST, &paths::secret_reveal(name.as_str()), empty()).await?.json().await
    }

    /// Encrypts all secrets with a new master key.
    pub async fn rotate_key(&self) -> Result<KeyRotated, ClientError> {
        self.request(Method::POST, paths::SECRETS_ROTATE_KEY, empty()).await?.json().await
    }

    /// What was done with secrets, newest last.
    pub async fn audit(&self) -> Result<Vec<AuditEntry>, ClientError> {
        self.get_path(paths::AUDIT).await?.json().await
    }

    /// Replaces which secrets an instance gets from its next boot on.
    pub async fn assign_secrets(
        &self,
        target: &str,
        secrets: &InstanceSecrets,
    ) -> Result<InstanceSecretsReply, ClientError> {
        self.send_json(Method::PUT, &paths::instance_secrets(target), secrets).await?.json().await
    }

    /// What is at a path in the guest, which is woken for it.
    pub async fn file_stat(&self, target: &str, path: &str, follow: bool) -> Result<FileStat, ClientError> {
        self.get_path(&file_query(&paths::file_stat(target), path, follow)).await?.json().await
    }

    /// What is at a path in the guest, with everything below it, as a tar stream.
    pub async fn read_files(&self, target: &str, path: &str, follow: bool) -> Result<Download, ClientError> {
        Download::new(self.get_path(&file_query(&paths::files(target), path, follow)).await?)
    }

    /// Unpacks a tar stream into an existing directory of the guest. A stream that fails is not taken for complete.
    pub async fn write_files(
        &self,
        target: &str,
        path: &str,
        keep_owners: bool,
        tar: mpsc::Receiver<io::Result<Bytes>>,
    ) -> Result<CopyReport, ClientError> {
        let mut target = format!("{}?path={}", paths::files(target), paths::encode(path));
        if keep_owners {
            target.push_str("&owners=keep");
        }
        let frames = unfold(tar, |mut tar| async move {
            let piece = tar.recv().await?;
            Some((piece.map(Frame::data), tar))
        });
        self.request(Method::PUT, &target, StreamBody::new(frames).boxed_unsync()).await?.json().await
    }

    /// Makes a template unless it is there; returns when it is.
    pub async fn build_template(&self, template: &BuildTemplate) -> Result<TemplateSummary, ClientError> {
        self.post(paths::TEMPLATES, template).await?.json().await
    }

    /// Deletes templates.
    pub async fn prune_templates(&self, prune: &PruneTemplates) -> Result<PrunedTemplates, ClientError> {
        self.post(paths::TEMPLATES_PRUNE, prune).await?.json().await
    }

    /// Ends the daemon; returns when it has begun to end.
    pub async fn shutdown(&self, mode: ShutdownMode) -> Result<StateReply, ClientError> {
        self.post(paths::SHUTDOWN, &ShutdownRequest { mode }).await?.json().await
    }

    /// All images.
    pub async fn images(&self) -> Result<Vec<ImageSummary>, ClientError> {
        self.get_path(paths::IMAGES).await?.json().await
    }

    /// Makes an image of a tar, optionally gzip-compressed, which is streamed to the daemon.
    pub async fn import<R>(&self, name: &ImageName, tar: R) -> Result<ImageImported, ClientError>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let path = named(paths::IMAGE_IMPORT, name);
        self.request(Method::POST, &path, streamed(tar)).await?.json().await
    }

    /// Makes images of an OCI archive or one of `docker save`, optionally compressed, which is streamed to the daemon.
    /// With a name it must have one image alone.
    pub async fn load<R>(
        &self,
        name: Option<&ImageName>,
        archive: R,
    ) -> Result<Vec<ImageImported>, ClientError>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let path = match name {
            Some(name) => named(paths::IMAGE_LOAD, name),
            None => paths::IMAGE_LOAD.to_owned(),
        };
        self.request(Method::POST, &path, streamed(archive)).await?.json().await
    }

    /// An image as an OCI archive.
    pub async fn save(&self, name: &ImageName) -> Result<Bytestream, ClientError> {
        self.get_path(&named(paths::IMAGE_SAVE, name)).await.map(Bytestream::new)
    }

    /// Everything about an image.
    pub async fn image(&self, name: &ImageName) -> Result<ImageInfo, ClientError> {
        self.get_path(&named(paths::IMAGE_INSPECT, name)).await?.json().await
    }

    /// Gets an image from its registry, unless somebody else does already: then it is followed. When the events are
    /// dropped, nobody wants it any more as far as this client is concerned.
    pub async fn pull(&self, pull: &PullImage) -> Result<PullEvents, ClientError> {
        self.post(paths::IMAGE_PULL, pull).await.map(PullEvents::new)
    }

    /// Takes a name from an image; with force also if an instance uses it.
    pub async fn delete_image(&self, name: &ImageName, force: bool) -> Result<ImageDeleted, ClientError> {
        let path = format!("{}&force={}", named(paths::IMAGES, name), u8::from(force));
        self.request(Method::DELETE, &path, empty()).await?.json().await
    }

    /// Deletes what nobody needs of images.
    pub async fn prune_images(&self, prune: &PruneImages) -> Result<PrunedImages, ClientError> {
        self.post(paths::IMAGES_PRUNE, prune).await?.json().await
    }

    /// What images take up on the disk.
    pub async fn image_usage(&self) -> Result<ImageUsage, ClientError> {
        self.get_path(paths::IMAGES_USAGE).await?.json().await
    }

    /// Registries that the daemon has credentials for.
    pub async fn registries(&self) -> Result<Vec<RegistrySummary>, ClientError> {
        self.get_path(paths::REGISTRIES).await?.json().await
    }

    /// Checks credentials at a registry and has them kept.
    pub async fn login(&self, login: &RegistryLogin) -> Result<RegistrySummary, ClientError> {
        self.post(paths::REGISTRIES, login).await?.json().await
    }

    /// Has the credentials for a registry forgotten.
    pub async fn logout(&self, registry: &str) -> Result<StateReply, ClientError> {
        self.request(Method::DELETE, &paths::registry(registry), empty()).await?.json().await
    }

    async fn get_path(&self, path: &str) -> Result<Answer, ClientError> {
        self.request(Method::GET, path, empty()).await
    }

    async fn post(&self, path: &str, body: &impl Serialize) -> Result<Answer, ClientError> {
        self.send_json(Method::POST, path, body).await
    }

    async fn send_json(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<Answer, ClientError> {
        self.request(method, path, json(body)?).await
    }

    async fn streams(&self, path: &str, body: &impl Serialize) -> Result<Process, ClientError> {
        Process::new(upgrade(&self.socket, path, STREAMS, json(body)?).await?).await
    }

    async fn request(&self, method: Method, path: &str, body: RequestBody) -> Result<Answer, ClientError> {
        request(&self.socket, method, path, body).await
    }
}

fn named(path: &str, name: &ImageName) -> String {
    format!("{path}?name={}", paths::encode(name.as_str()))
}

/// A body that is read while it is sent.
fn streamed<R: AsyncRead + Send + Unpin + 'static>(source: R) -> RequestBody {
    let frames = try_unfold(source, |mut source| async move {
        let mut chunk = BytesMut::with_capacity(IMPORT_CHUNK);
        let read = source.read_buf(&mut chunk).await?;
        io::Result::Ok((read > 0).then(|| (Frame::data(chunk.freeze()), source)))
    });
    StreamBody::new(frames).boxed_unsync()
}

fn file_query(of: &str, path: &str, follow: bool) -> String {
    format!("{of}?path={}&follow={}", paths::encode(path), u8::from(follow))
}

fn json(body: &impl Serialize) -> Result<RequestBody, ClientError> {
    let json = serde_json::to_vec(body).map_err(|e| ClientError::Protocol(e.to_string()))?;
    Ok(Full::from(json).map_err(|never| match never {}).boxed_unsync())
}

fn empty() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}
