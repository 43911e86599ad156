//! Paths of the API. `target` is an instance id or a handle.

use aegis_types::GuestPort;

/// `GET`: [`crate::DaemonStatus`].
pub const STATUS: &str = "/v1/status";
/// `POST`: [`crate::CreateInstance`] → [`crate::CreatedInstance`]; `GET [?state=]`: list of [`crate::InstanceSummary`].
pub const INSTANCES: &str = "/v1/instances";
/// `POST ?older_than=7d` → [`crate::PruneReply`].
pub const PRUNE: &str = "/v1/instances/prune";
/// `GET`: list of [`crate::ImageSummary`]; `DELETE ?name=[&force=1]` → [`crate::ImageDeleted`]. Names have slashes, so they
/// are parameters.
pub const IMAGES: &str = "/v1/images";
/// `GET ?name=` → [`crate::ImageInfo`].
pub const IMAGE_INSPECT: &str = "/v1/images/inspect";
/// `POST`: [`crate::PullImage`] → stream of [`crate::PullEvent`]. The pull ends with the last who reads such a stream.
pub const IMAGE_PULL: &str = "/v1/images/pull";
/// `POST`: [`crate::PruneImages`] → [`crate::PrunedImages`].
pub const IMAGES_PRUNE: &str = "/v1/images/prune";
/// `POST [?name=]` with an OCI or `docker save` archive as the body → list of [`crate::ImageImported`].
pub const IMAGE_LOAD: &str = "/v1/images/load";
/// `GET ?name=` → the image as an OCI archive.
pub const IMAGE_SAVE: &str = "/v1/images/save";
/// `GET` → [`crate::ImageUsage`].
pub const IMAGES_USAGE: &str = "/v1/images/df";
/// `GET`: list of [`crate::RegistrySummary`]; `POST`: [`crate::RegistryLogin`] → [`crate::RegistrySummary`].
pub const REGISTRIES: &str = "/v1/registries";
/// `POST ?name=` with a tar (optionally gzip) as the body → [`crate::ImageImported`].
pub const IMAGE_IMPORT: &str = "/v1/images/import";

/// `GET`: list of [`crate::WorkspaceSummary`].
pub const WORKSPACES: &str = "/v1/workspaces";
/// `GET`: list of [`crate::SecretSummary`].
pub const SECRETS: &str = "/v1/secrets";
/// `POST` → [`crate::KeyRotated`].
pub const SECRETS_ROTATE_KEY: &str = "/v1/secrets/rotate-key";
/// `GET`: list of [`crate::AuditEntry`], newest last; at most the newest 1000.
pub const AUDIT: &str = "/v1/audit";
/// `GET`: [`crate::DaemonStats`].
pub const STATS: &str = "/v1/stats";
/// `GET`: list of [`crate::TemplateSummary`]; `POST`: [`crate::BuildTemplate`] → [`crate::TemplateSummary`] when it is built.
pub const TEMPLATES: &str = "/v1/templates";
/// `POST`: [`crate::PruneTemplates`] → [`crate::PrunedTemplates`].
pub const TEMPLATES_PRUNE: &str = "/v1/templates/prune";
/// `POST`: [`crate::ShutdownRequest`] → [`crate::StateReply`]; the daemon ends after it.
pub const SHUTDOWN: &str = "/v1/shutdown";
/// `GET`: the description of this API in OpenAPI.
pub const OPENAPI: &str = "/v1/openapi.json";
/// `GET`: the numbers of [`STATS`] in the text format of Prometheus.
pub const METRICS: &str = "/metrics";

/// `GET`: [`crate::InstanceInfo`]; `PATCH`: [`crate::UpdateInstance`] → [`crate::UpdatedInstance`]; `DELETE` →
/// [`crate::StateReply`].
pub fn instance(target: &str) -> String {
    format!("{INSTANCES}/{}", encode(target))
}

/// `DELETE` → [`crate::StateReply`].
pub fn workspace(name: &str) -> String {
    format!("{WORKSPACES}/{}", encode(name))
}

/// `DELETE` → [`crate::StateReply`].
pub fn registry(host: &str) -> String {
    format!("{REGISTRIES}/{}", encode(host))
}

/// `PUT`: [`crate::SetSecret`] → [`crate::SecretSummary`]; `DELETE` → [`crate::StateReply`]. There is no `GET`.
pub fn secret(name: &str) -> String {
    format!("{SECRETS}/{}", encode(name))
}

/// `POST` → [`crate::RevealedSecret`].
pub fn secret_reveal(name: &str) -> String {
    format!("{}/reveal", secret(name))
}

/// `PUT`: [`crate::InstanceSecrets`] → [`crate::InstanceSecretsReply`].
pub fn instance_secrets(target: &str) -> String {
    action(target, "secrets")
}

/// `GET` → [`crate::WorkspaceUsage`].
pub fn workspace_usage(name: &str) -> String {
    format!("{}/usage", workspace(name))
}

/// `GET ?path=` → the content of a file of at most 10 MiB; `POST ?path=` with the content as the body → [`crate::StateReply`].
pub fn workspace_file(target: &str, path: &str) -> String {
    format!("{}?path={}", action(target, "workspace"), encode(path))
}

/// `GET ?path=` → list of [`crate::WorkspaceEntry`].
pub fn workspace_tree(target: &str, path: &str) -> String {
    format!("{}/tree?path={}", action(target, "workspace"), encode(path))
}

/// `POST` with action `start`, `stop`, `restart`, `disable`, `pause`, `resume` or `hibernate` → [`crate::StateReply`].
pub fn action(target: &str, action: &str) -> String {
    format!("{}/{action}", instance(target))
}

/// `POST`: [`crate::ExecRequest`] → stream.
pub fn exec(target: &str) -> String {
    action(target, "exec")
}

/// `POST`: [`crate::AttachedExec`] → streams.
pub fn exec_attach(target: &str) -> String {
    action(target, "exec/attach")
}

/// `POST`: [`crate::Attach`] → streams.
pub fn attach(target: &str) -> String {
    action(target, "attach")
}

/// `POST`: [`crate::ExposeRequest`] → [`crate::ExposeReply`].
pub fn expose(target: &str) -> String {
    action(target, "expose")
}

/// `DELETE` → [`crate::StateReply`].
pub fn exposed(target: &str, port: GuestPort) -> String {
    format!("{}/{port}", expose(target))
}

/// `POST`: [`crate::KeepaliveRequest`] takes or renews the lease, `DELETE` gives it up → [`crate::StateReply`].
pub fn keepalive(target: &str) -> String {
    action(target, "keepalive")
}

/// `GET ?for=&port=&timeout_ms=`, see [`crate::WaitQuery`] → [`crate::StateReply`] with the state that was reached;
/// [`crate::ErrorCode::Timeout`] when it was not.
pub fn wait(target: &str) -> String {
    action(target, "wait")
}

/// `GET [?follow=1&attach=1&since=&tail=&exec_id=]` → stream of [`crate::LogEntry`]. With `attach=1` the instance is
/// not idle while the answer is read.
pub fn logs(target: &str) -> String {
    action(target, "logs")
}

/// `GET`: [`crate::NetStatus`].
pub fn net(target: &str) -> String {
    action(target, "net")
}

/// `POST`: [`crate::NetRuleRequest`] → [`crate::NetStatus`].
pub fn net_rules(target: &str) -> String {
    action(target, "net/rules")
}

/// `GET [?follow=1&denied=1]` → stream of [`aegis_types::NetEvent`].
pub fn net_log(target: &str) -> String {
    action(target, "net/log")
}

/// `GET ?path=&follow=` → a tar stream of what is at the path in the guest, with a [`aegis_types::FileStat`] in the header
/// [`crate::STAT_HEADER`], and a [`aegis_types::CopyReport`] in the trailer [`crate::REPORT_TRAILER`] for who sends
/// `TE: trailers`; `PUT ?path=&owners=keep` with a tar stream as the body, which is unpacked into that directory →
/// [`aegis_types::CopyReport`].
pub fn files(target: &str) -> String {
    action(target, "files")
}

/// `GET ?path=&follow=` → [`aegis_types::FileStat`].
pub fn file_stat(target: &str) -> String {
    action(target, "files/stat")
}

/// `GET` → the console text of the guest's kernel, newest part, `text/plain`.
pub fn console(target: &str) -> String {
    action(target, "console")
}

/// Percent-encodes what may not stand in a path segment or query value.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn targets_cannot_leave_their_segment() {
        assert_eq!(instance("../x y"), "/v1/instances/..%2Fx%20y");
        assert_eq!(logs("web"), "/v1/instances/web/logs");
        assert_eq!(exposed("web", GuestPort::new(80).unwrap()), "/v1/instances/web/expose/80");
    }
}
