//! Instances: create, look at, change, delete.

use std::future::Future;
use std::time::Duration;

use aegis_api::{
    CreateInstance, CreatedInstance, Endpoint, ErrorCode, InstanceInfo, InstanceSummary, NetStatus,
    PruneReply, StateReply,
};
use aegis_lifecycle::record::InstanceSpec;
use aegis_lifecycle::{Denied, Instance};
use aegis_types::{InstanceId, InstanceState, Mount, Policy, StopReason, WantedSecrets, parse_duration};
use axum::extract::State;
use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio::task;
use utoipa::IntoParams;

use super::error::{ApiError, denied, label, not_created};
use super::extract::{Json, Params, Target};
use super::{Shared, images, ports, secrets, view};
use crate::images::Kept;
use crate::text;
use crate::workspaces::{Chosen, WorkspaceError};

pub(super) type Answer<T> = Result<axum::Json<T>, ApiError>;

/// Creates an instance and starts it, or starts the stopped one that has this handle.
#[utoipa::path(
    post,
    path = "/v1/instances",
    request_body = CreateInstance,
    responses((status = 201, description = "Created", body = CreatedInstance), (status = 200, description = "The stopped instance of this name is started", body = CreatedInstance))
)]
pub(super) async fn create(
    State(app): State<Shared>,
    Json(request): Json<CreateInstance>,
) -> Result<(StatusCode, axum::Json<CreatedInstance>), ApiError> {
    let existing = request.handle.as_ref().and_then(|handle| app.manager.find(handle.as_str()));
    match existing {
        Some(instance) => Ok((StatusCode::OK, axum::Json(start_existing(&app, &instance, &request).await?))),
        None => Ok((StatusCode::CREATED, axum::Json(create_new(&app, request).await?))),
    }
}

async fn start_existing(
    app: &Shared,
    instance: &Instance,
    request: &CreateInstance,
) -> Result<CreatedInstance, ApiError> {
    let policy = request.policy().map_err(|e| ApiError::invalid(e.to_string()))?;
    let state = instance.status().state;
    if !matches!(state, InstanceState::Stopped | InstanceState::Hibernated) {
        let name = label(instance);
        return Err(ApiError::new(
            ErrorCode::AlreadyExists,
            format!("instance `{name}` exists already and is {state}"),
        )
        .with_hint(format!("choose another name, or remove it: `aegis instance delete {name}`")));
    }
    // Together with what it had. All of it must be there before anything else happens.
    let asked = wanted_secrets(request)?;
    let changing = app.secrets.changing().await;
    let wanted = secrets::wanted(app, instance).await?.merged(asked.clone());
    let wanted = wanted.map_err(|e| ApiError::invalid(e.to_string()))?;
    let mut warnings = match state {
        InstanceState::Stopped => secrets::check(app, Some(label(instance)), &wanted).await?,
        // It goes on from its memory, with what it was given.
        _ => Vec::new(),
    };
    if !asked.is_empty() {
        let saved = app.secrets.want(&instance.spec().id, wanted).await;
        saved.map_err(|e| ApiError::internal("cannot keep the list of secrets", &e))?;
        if state == InstanceState::Hibernated {
            warnings.push("it goes on from its memory and gets the secrets at its next boot".to_owned());
        }
    }
    drop(changing);
    let keeps = instance_network(app, instance).await?;
    let other_network = request.net.as_ref().is_some_and(|policy| *policy != keeps.policy)
        || !request.host_ports.is_empty() && request.host_ports != keeps.host_ports;
    for wanted in &request.exposes {
        ports::expose_now(app, instance, (*wanted).into()).await?;
    }
    start_and_listen(app, instance).await?;
    let spec = &instance.status().spec;
    let differs = [
        ("command", !request.command.is_empty() && request.command != spec.command),
        ("use of the image's defaults", request.oci_defaults && !spec.oci_defaults),
        ("image", request.image_ref.as_ref().is_some_and(|image| *image != spec.image)),
        ("environment", !request.env.is_empty() && request.env != spec.env),
        ("workdir", request.workdir.is_some() && request.workdir != spec.workdir),
        ("user", request.user.is_some() && request.user != spec.user),
        ("terminal", request.tty && !spec.tty),
        ("standard input", request.stdin && !spec.stdin),
        ("memory", request.memory_mb.is_some_and(|memory| memory != spec.memory)),
        ("disk", request.disk_mb.is_some_and(|disk| disk != spec.disk)),
        ("cpus", request.vcpus.is_some_and(|vcpus| vcpus != spec.vcpus)),
        ("network", other_network),
        ("workspace", other_workspace(app, request, &spec.mounts)),
        ("policy", policy != Policy::default() && policy != spec.policy),
    ];
    let warn = |what: &str| format!("the instance exists already and keeps its own {what}");
    warnings.extend(differs.iter().filter(|(_, differs)| *differs).map(|(what, _)| warn(what)));
    Ok(created(spec, app.exposes.endpoints(&spec.id), warnings))
}

fn wanted_secrets(request: &CreateInstance) -> Result<WantedSecrets, ApiError> {
    let wanted = WantedSecrets { variables: request.secrets.clone(), files: request.secret_files.clone() };
    wanted.checked().map_err(|e| ApiError::invalid(e.to_string()))
}

/// Whether other directories are wanted than the instance has.
fn other_workspace(app: &Shared, request: &CreateInstance, mounts: &[Mount]) -> bool {
    let wanted = match request.workspace.as_deref() {
        None | Some("") => None,
        Some(path) if path.starts_with('/') => Some(path.into()),
        Some(name) => app.workspaces.path(name),
    };
    let has = |host: &std::path::Path| {
        let real = host.canonicalize();
        mounts.iter().any(|mount| real.as_ref().is_ok_and(|real| *real == mount.host))
    };
    wanted.is_some_and(|wanted| !has(&wanted)) || request.mounts.iter().any(|mount| !has(&mount.host))
}

async fn instance_network(app: &Shared, instance: &Instance) -> Result<NetStatus, ApiError> {
    let (networks, id) = (app.networks.clone(), instance.spec().id.clone());
    let loaded =
        task::spawn_blocking(move || networks.load(&id)).await.expect("reading a file does not panic");
    loaded.map_err(|e| ApiError::internal("cannot read the network policy", &e))
}

/// Starts an instance and listens on its ports again, which it had not while it was disabled.
async fn start_and_listen(app: &Shared, instance: &Instance) -> Result<(), ApiError> {
    if instance.status().state == InstanceState::Stopped {
        let wanted = secrets::wanted(app, instance).await?;
        secrets::check(app, Some(label(instance)), &wanted).await?;
    }
    instance.start().await.map_err(|e| denied("start", instance, e))?;
    ports::listen(app, instance).await;
    Ok(())
}

async fn create_new(app: &Shared, request: CreateInstance) -> Result<CreatedInstance, ApiError> {
    // Without a command the instance runs what its image says, as the image says.
    let oci_defaults = request.oci_defaults || request.command.is_empty();
    if request.command.is_empty() {
        check_surroundings(request.env.iter(), request.workdir.as_deref())?;
    } else {
        check_process(&request.command, request.env.iter(), request.workdir.as_deref())?;
    }
    check_user(request.user.as_deref())?;
    let policy = request.policy().map_err(|e| ApiError::invalid(e.to_string()))?;
    let net = request.net.clone().unwrap_or_default().checked();
    let net = net.map_err(|e| ApiError::invalid(e.to_string()))?;
    let secrets = wanted_secrets(&request)?;
    let warnings =
        secrets::check(app, request.handle.as_ref().map(|handle| handle.as_str()), &secrets).await?;
    let image = request.image_ref.clone().unwrap_or_else(|| app.settings.default_image.value.clone());
    let pull = request.pull.unwrap_or(app.settings.pull.value);
    images::check(app, &image, pull, oci_defaults.then_some(&request.command)).await?;
    let id = InstanceId::from_unix_nanos(app.ids.next());
    let (workspaces, wished, for_id) = (app.workspaces.clone(), request.clone(), id.clone());
    let chosen = task::spawn_blocking(move || workspaces.choose(&for_id, &wished));
    let chosen = chosen.await.expect("making directories does not panic").map_err(|e| not_mountable(&e))?;
    let spec = InstanceSpec {
        id,
        handle: request.handle,
        image,
        command: request.command,
        env: request.env,
        workdir: request.workdir,
        user: request.user,
        tty: request.tty,
        stdin: request.stdin,
        oci_defaults,
        memory: request.memory_mb.unwrap_or(app.settings.default_memory.value),
        disk: request.disk_mb.unwrap_or(app.settings.default_disk.value),
        vcpus: request.vcpus.unwrap_or(app.settings.default_vcpus.value),
        policy,
        parent: request.parent_id,
        mounts: chosen.mounts.clone(),
        auto_workspace: chosen.auto,
        created_at: Timestamp::now(),
    };
    let network = NetStatus { policy: net, host_ports: request.host_ports };
    // A task of its own: the log must not stay without an instance when the client goes away.
    let (app, exposes) = (app.clone(), request.exposes);
    let creating = app.clone().tasks.spawn(async move {
        // Before there is an instance: without its ports it is not created.
        let ports = match ports::open_all(&app, &spec, exposes).await {
            Ok(ports) => ports,
            Err(error) => {
                give_up(&app, chosen).await;
                return Err(error);
            }
        };
        let (networks, images, id) = (app.networks.clone(), app.images.clone(), spec.id.clone());
        let save = move || {
            let wanted = Kept { pull: Some(pull), pin: None };
            let saved = networks.save(&id, &network).and_then(|()| images.keep(&id, &wanted));
            saved.inspect_err(|_| networks.forget(&id))
        };
        if let Err(error) = task::spawn_blocking(save).await.expect("writing a file does not panic") {
            app.exposes.forget(&spec.id).await;
            give_up(&app, chosen).await;
            return Err(ApiError::internal("cannot write what is kept of the instance", &error));
        }
        if !secrets.is_empty()
            && let Err(error) = app.secrets.want(&spec.id, secrets).await
        {
            app.exposes.forget(&spec.id).await;
            give_up(&app, chosen).await;
            forget_network(&app, &spec.id).await;
            return Err(ApiError::internal("cannot keep the list of secrets", &error));
        }
        // Before the boot, so that a follower misses nothing of it.
        app.logs.create(spec.id.clone()).await;
        match app.manager.create(spec.clone()).await {
            Ok(instance) => {
                ports::record(&app, &spec.id).await?;
                Ok(created(instance.spec(), ports, warnings))
            }
            Err(error) => {
                app.exposes.forget(&spec.id).await;
                give_up(&app, chosen).await;
                forget_network(&app, &spec.id).await;
                app.secrets.forget(&spec.id).await;
                // Best effort: what has no instance is removed at the next start anyway.
                let _ = app.logs.remove(&spec.id).await;
                Err(not_created(error))
            }
        }
    });
    creating.await.expect("creating does not panic")
}

async fn forget_network(app: &Shared, id: &InstanceId) {
    let (networks, id) = (app.networks.clone(), id.clone());
    let forgotten = task::spawn_blocking(move || networks.forget(&id));
    forgotten.await.expect("removing files does not panic");
}

/// Removes the directory that was made for an instance that was not created.
async fn give_up(app: &Shared, chosen: Chosen) {
    let workspaces = app.workspaces.clone();
    let given_up = task::spawn_blocking(move || workspaces.give_up(&chosen));
    given_up.await.expect("removing a directory does not panic");
}

fn not_mountable(error: &WorkspaceError) -> ApiError {
    let refusal = ApiError::invalid(error.to_string());
    match text::cause(error) {
        Some(cause) => refusal.with_cause(cause),
        None => refusal,
    }
}

fn created(spec: &InstanceSpec, endpoints: Vec<Endpoint>, warnings: Vec<String>) -> CreatedInstance {
    CreatedInstance {
        id: spec.id.clone(),
        state: InstanceState::Starting,
        command: spec.command.clone(),
        handle: spec.handle.clone(),
        image_ref: spec.image.clone(),
        endpoints,
        warnings,
    }
}

/// Refuses what no guest could execute.
pub(super) fn check_process<'a>(
    command: &[String],
    env: impl Iterator<Item = (&'a String, &'a String)>,
    workdir: Option<&str>,
) -> Result<(), ApiError> {
    match command.first() {
        None => return Err(ApiError::invalid("`command` is required: a program and its arguments")),
        Some(program) if program.is_empty() => {
            return Err(ApiError::invalid("the program in `command` is empty"));
        }
        Some(_) => {}
    }
    if command.iter().any(|argument| argument.contains('\0')) {
        return Err(ApiError::invalid("an argument in `command` contains a NUL byte"));
    }
    check_surroundings(env, workdir)
}

/// Refuses an environment and a working directory that no process could have.
fn check_surroundings<'a>(
    env: impl Iterator<Item = (&'a String, &'a String)>,
    workdir: Option<&str>,
) -> Result<(), ApiError> {
    check_env(env)?;
    match workdir {
        Some(dir) if !dir.starts_with('/') || dir.contains('\0') => {
            Err(ApiError::invalid("`workdir` must be an absolute path in the guest"))
        }
        _ => Ok(()),
    }
}

/// Longer than any name of a user and a group.
const USER_MAX: usize = 256;

/// Refuses what names no user. Whether there is one the guest knows.
pub(super) fn check_user(user: Option<&str>) -> Result<(), ApiError> {
    match user {
        Some(user) if user.is_empty() || user.len() > USER_MAX || user.chars().any(char::is_control) => {
            Err(ApiError::invalid("`user` must be USER or USER:GROUP, names or numbers of the guest"))
        }
        _ => Ok(()),
    }
}

/// Refuses an environment that no process could have.
pub(super) fn check_env<'a>(env: impl Iterator<Item = (&'a String, &'a String)>) -> Result<(), ApiError> {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            let name: String = name.escape_debug().take(80).collect();
            return Err(ApiError::invalid(format!("`{name}` cannot be the name of an environment variable")));
        }
        if value.contains('\0') {
            return Err(ApiError::invalid(format!(
                "the value of environment variable `{name}` contains a NUL byte"
            )));
        }
    }
    Ok(())
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ListParams {
    /// Only those in this state.
    state: Option<String>,
}

/// Instances: running, starting, paused, hibernated, stopped, disabled; then by age.
#[utoipa::path(
    get,
    path = "/v1/instances",
    params(ListParams),
    responses((status = 200, body = Vec<InstanceSummary>))
)]
pub(super) async fn list(
    State(app): State<Shared>,
    Params(params): Params<ListParams>,
) -> Answer<Vec<InstanceSummary>> {
    use InstanceState::{Hibernated, Paused, Running, Starting, Stopped};
    let state = match params.state.as_deref() {
        None | Some("") => None,
        Some(text) => {
            let all = [Stopped, Starting, Running, Paused, Hibernated];
            Some(all.into_iter().find(|s| s.as_str() == text).ok_or_else(|| {
                let names = all.map(|state| format!("`{state}`")).join(", ");
                ApiError::invalid(format!("unknown state: it is one of {names}"))
            })?)
        }
    };
    Ok(axum::Json(view::listed(app.manager.list(), state, &app.exposes)))
}

/// Everything about an instance.
#[utoipa::path(get, path = "/v1/instances/{target}", responses((status = 200, body = InstanceInfo)))]
pub(super) async fn info(State(app): State<Shared>, Target(instance): Target) -> Answer<InstanceInfo> {
    let accelerator = app.accel.known().map(|verdict| verdict.accelerator);
    let net = instance_network(&app, &instance).await?;
    let wanted = secrets::wanted(&app, &instance).await?;
    let endpoints = app.exposes.endpoints(&instance.spec().id);
    let id = instance.spec().id.clone();
    let kept = images::with(&app, move |images| images.kept(&id)).await;
    let image = kept.map_err(|e| ApiError::internal("cannot tell which image the instance has", &e))?.pin;
    Ok(axum::Json(view::info(&instance, endpoints, net, wanted, image, accelerator)))
}

pub(super) async fn act<F: Future<Output = Result<(), Denied>>>(
    instance: &Instance,
    action: &'static str,
    status: &str,
    work: F,
) -> Answer<StateReply> {
    work.await.map_err(|e| denied(action, instance, e))?;
    Ok(axum::Json(StateReply { status: status.to_owned() }))
}

/// Enables an instance and starts it, or lets it go on.
#[utoipa::path(post, path = "/v1/instances/{target}/start", responses((status = 200, body = StateReply)))]
pub(super) async fn start(State(app): State<Shared>, Target(instance): Target) -> Answer<StateReply> {
    start_and_listen(&app, &instance).await?;
    Ok(axum::Json(StateReply { status: "starting".to_owned() }))
}

/// Stops the VM. Its ports stay and wake the instance.
#[utoipa::path(post, path = "/v1/instances/{target}/stop", responses((status = 200, body = StateReply)))]
pub(super) async fn stop(Target(instance): Target) -> Answer<StateReply> {
    act(&instance, "stop", "stopped", instance.stop()).await
}

/// Stops the VM, enables the instance and starts it.
#[utoipa::path(post, path = "/v1/instances/{target}/restart", responses((status = 200, body = StateReply)))]
pub(super) async fn restart(State(app): State<Shared>, Target(instance): Target) -> Answer<StateReply> {
    let wanted = secrets::wanted(&app, &instance).await?;
    secrets::check(&app, Some(label(&instance)), &wanted).await?;
    let answer = act(&instance, "restart", "restarting", instance.restart()).await;
    ports::listen(&app, &instance).await;
    answer
}

/// Stops the VM and closes the ports until a start.
#[utoipa::path(post, path = "/v1/instances/{target}/disable", responses((status = 200, body = StateReply)))]
pub(super) async fn disable(State(app): State<Shared>, Target(instance): Target) -> Answer<StateReply> {
    let answer = act(&instance, "disable", "disabled", instance.disable()).await;
    // Whatever came of the stop: from now on nobody may wake it.
    if !instance.status().enabled {
        app.exposes.close(&instance.spec().id).await;
    }
    answer
}

/// Halts the CPUs; the memory stays.
#[utoipa::path(post, path = "/v1/instances/{target}/pause", responses((status = 200, body = StateReply)))]
pub(super) async fn pause(Target(instance): Target) -> Answer<StateReply> {
    act(&instance, "pause", "paused", instance.pause()).await
}

/// Lets a paused instance go on.
#[utoipa::path(post, path = "/v1/instances/{target}/resume", responses((status = 200, body = StateReply)))]
pub(super) async fn resume(Target(instance): Target) -> Answer<StateReply> {
    act(&instance, "resume", "running", instance.resume()).await
}

/// Stops the VM and removes the instance with its disk and logs.
#[utoipa::path(delete, path = "/v1/instances/{target}", responses((status = 200, body = StateReply)))]
pub(super) async fn delete(State(app): State<Shared>, Target(instance): Target) -> Answer<StateReply> {
    let answer = act(&instance, "delete", "deleted", instance.delete()).await;
    if instance.status().deleted {
        app.exposes.forget(&instance.spec().id).await;
        app.garbage.notify_one();
    }
    answer
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct PruneParams {
    /// For how long, such as `7d`.
    #[param(required)]
    older_than: Option<String>,
}

/// Deletes instances that have been stopped for long.
#[utoipa::path(
    post,
    path = "/v1/instances/prune",
    params(PruneParams),
    responses((status = 200, body = PruneReply))
)]
pub(super) async fn prune(
    State(app): State<Shared>,
    Params(params): Params<PruneParams>,
) -> Answer<PruneReply> {
    let text =
        params.older_than.ok_or_else(|| ApiError::invalid("`older_than` is required, such as `7d`"))?;
    let age = parse_duration(&text).map_err(|e| ApiError::invalid(e.to_string()))?;
    let cutoff = before(Timestamp::now(), age);
    let mut ids = Vec::new();
    for instance in app.manager.list() {
        let status = instance.status();
        // What was never started waits for its first start.
        let old =
            status.stopped.is_some_and(|stop| stop.reason != StopReason::NeverStarted && stop.at < cutoff);
        if status.state != InstanceState::Stopped || !old {
            continue;
        }
        match instance.delete().await {
            Ok(()) => {
                app.exposes.forget(&instance.spec().id).await;
                ids.push(instance.spec().id.clone());
            }
            // Somebody else deleted it.
            Err(Denied::Deleted) => {}
            Err(error) => tracing::warn!(%error, instance = %instance.spec().id, "cannot prune an instance"),
        }
    }
    app.garbage.notify_one();
    Ok(axum::Json(PruneReply { pruned: ids.len(), ids }))
}

/// The time so long before another; the beginning of time if there is none.
pub(super) fn before(time: Timestamp, age: Duration) -> Timestamp {
    let age = SignedDuration::try_from(age).ok();
    age.and_then(|age| time.checked_sub(age).ok()).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn check(command: &[&str], env: &[(&str, &str)], workdir: Option<&str>) -> bool {
        let command: Vec<String> = command.iter().map(|&s| s.to_owned()).collect();
        let env: Vec<(String, String)> = env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        check_process(&command, env.iter().map(|(k, v)| (k, v)), workdir).is_ok()
    }

    #[test]
    fn only_what_a_guest_can_execute_is_accepted() {
        assert!(check(&["sh", "", "-c"], &[("A", "=\n")], Some("/srv")));
        assert!(!check(&[], &[], None));
        assert!(!check(&[""], &[], None));
        assert!(!check(&["a", "b\0"], &[], None));
        for name in ["", "A=B", "A\0"] {
            assert!(!check(&["a"], &[(name, "")], None), "{name:?}");
        }
        assert!(!check(&["a"], &[("A", "\0")], None));
        assert!(!check(&["a"], &[], Some("srv")) && !check(&["a"], &[], Some("")));
    }

    #[test]
    fn an_age_beyond_all_time_prunes_nothing() {
        let now = Timestamp::now();
        assert_eq!(before(now, Duration::from_secs(u64::MAX)), Timestamp::MIN);
        assert!(before(now, Duration::from_secs(1)) < now);
    }
}
