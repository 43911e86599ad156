//! Paths of the API. `target` is an instance id or a handle.

/// `GET`: [`crate::DaemonStatus`].
pub const STATUS: &str = "/v1/status";
/// `POST`: [`crate::CreateInstance`] → [`crate::CreatedInstance`]; `GET [?state=]`: list of [`crate::InstanceSummary`].
pub const INSTANCES: &str = "/v1/instances";
/// `POST ?older_than=7d` → [`crate::PruneReply`].
pub const PRUNE: &str = "/v1/instances/prune";
/// `GET`: list of [`crate::ImageSummary`].
pub const IMAGES: &str = "/v1/images";
/// `POST ?name=` with a tar (optionally gzip) as the body → [`crate::ImageImported`].
pub const IMAGE_IMPORT: &str = "/v1/images/import";

/// `GET`: [`crate::InstanceInfo`]; `DELETE` → [`crate::StateReply`].
pub fn instance(target: &str) -> String {
    format!("{INSTANCES}/{}", encode(target))
}

/// `POST` with action `start`, `stop`, `restart`, `disable`, `pause` or `resume` → [`crate::StateReply`].
pub fn action(target: &str, action: &str) -> String {
    format!("{}/{action}", instance(target))
}

/// `POST`: [`crate::ExecRequest`] → stream.
pub fn exec(target: &str) -> String {
    action(target, "exec")
}

/// `GET [?follow=1&since=&tail=&exec_id=]` → stream of [`crate::LogEntry`].
pub fn logs(target: &str) -> String {
    action(target, "logs")
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
    use super::*;

    #[test]
    fn targets_cannot_leave_their_segment() {
        assert_eq!(instance("../x y"), "/v1/instances/..%2Fx%20y");
        assert_eq!(logs("web"), "/v1/instances/web/logs");
    }
}
