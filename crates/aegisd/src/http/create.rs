//! Creating an instance, or starting the stopped one of that name.

use aegis_api::{CreateInstance, CreatedInstance, Endpoint, ErrorCode, ExposeRequest, NetStatus};
use aegis_lifecycle::Instance;
use aegis_lifecycle::record::InstanceSpec;
use aegis_types::{InstanceId, InstanceState, Mount, Policy, WantedSecrets};
use axum::extract::State;
use axum::http::StatusCode;
use jiff::Timestamp;
use tokio::task;

use super::checks::{check_process, check_surroundings, check_user};
use super::error::{ApiError, label, not_created};
use super::extract::Json;
use super::instances::{instance_network, start_and_listen};
use super::{Shared, images, ports, secrets};
use crate::images::Kept;
use crate::text;
use crate::workspaces::{Chosen, WorkspaceError};

/// Creates an instance and starts it, or starts the stopped one that has this handle.
#[utoipa::path(
    post,
    path = "/v1/instances",
    operation_id = "create",
    tag = "instances",
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
        let parts = Parts { exposes, network, kept: Kept { pull: Some(pull), pin: None }, secrets };
        let made = make(&app, &spec, parts).await;
        let (instance, ports) = match made {
            Ok(made) => made,
            Err(error) => {
                undo(&app, &spec.id, chosen).await;
                return Err(error);
            }
        };
        ports::record(&app, &spec.id).await?;
        Ok(created(instance.spec(), ports, warnings))
    });
    creating.await.expect("creating does not panic")
}

/// What an instance has beside its record.
struct Parts {
    exposes: Vec<ExposeRequest>,
    network: NetStatus,
    kept: Kept,
    secrets: WantedSecrets,
}

/// Makes an instance, and its ports, files and log before it. After an error some of them are there.
async fn make(
    app: &Shared,
    spec: &InstanceSpec,
    parts: Parts,
) -> Result<(Instance, Vec<Endpoint>), ApiError> {
    let Parts { exposes, network, kept, secrets } = parts;
    let ports = ports::open_all(app, spec, exposes).await?;
    let (networks, images, id) = (app.networks.clone(), app.images.clone(), spec.id.clone());
    let saved =
        task::spawn_blocking(move || networks.save(&id, &network).and_then(|()| images.keep(&id, &kept)));
    saved
        .await
        .expect("writing a file does not panic")
        .map_err(|e| ApiError::internal("cannot write what is kept of the instance", &e))?;
    if !secrets.is_empty() {
        let wanted = app.secrets.want(&spec.id, secrets).await;
        wanted.map_err(|e| ApiError::internal("cannot keep the list of secrets", &e))?;
    }
    // Before the boot, so that a follower misses nothing of it.
    app.logs.create(spec.id.clone()).await;
    Ok((app.manager.create(spec.clone()).await.map_err(not_created)?, ports))
}

/// Removes what was made for an instance that was not created.
async fn undo(app: &Shared, id: &InstanceId, chosen: Chosen) {
    app.exposes.forget(id).await;
    app.secrets.forget(id).await;
    // Best effort: what has no instance is removed at the next start anyway.
    let _ = app.logs.remove(id).await;
    let (workspaces, networks, id) = (app.workspaces.clone(), app.networks.clone(), id.clone());
    let removed = task::spawn_blocking(move || {
        workspaces.give_up(&chosen);
        networks.forget(&id);
    });
    removed.await.expect("removing files does not panic");
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
