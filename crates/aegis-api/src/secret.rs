//! Secrets. A value is in the request that stores it and in the answer that reveals it, and nowhere else.

use std::fmt;

use aegis_types::{Handle, InstanceId, SecretBytes, SecretFile, SecretName, SecretUse, VmId};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Stores a secret, in place of an older one of this name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetSecret {
    /// A string, or `{"base64": "…"}` for any bytes; not empty, at most 64 KiB.
    pub value: SecretBytes,
}

/// A stored secret, without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SecretSummary {
    /// Name.
    pub name: SecretName,
    /// When it got its value.
    pub created_at: Timestamp,
}

/// A stored secret with its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RevealedSecret {
    /// Name.
    pub name: SecretName,
    /// A string, or `{"base64": "…"}` when it is not UTF-8.
    pub value: SecretBytes,
}

/// All secrets were encrypted with another master key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyRotated {
    /// Number of stored secrets.
    pub secrets: usize,
}

/// Replaces which secrets an instance gets from its next boot on.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct InstanceSecrets {
    /// Variables: `KEY`, `K=secret.NAME` or `*`, with a `?` at the end for one that may be missing.
    #[serde(default)]
    pub secrets: Vec<SecretUse>,
    /// Files: `KEY:/run/secrets/NAME`. Left as they are when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_files: Option<Vec<SecretFile>>,
}

/// Answer to [`InstanceSecrets`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstanceSecretsReply {
    /// What it gets as variables.
    pub secret_keys: Vec<SecretUse>,
    /// What it gets as files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secret_files: Vec<SecretFile>,
    /// It has a VM, or a saved one, which keeps what it was given.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub restart_required: bool,
    /// What the caller should know although the request was carried out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// What was done with secrets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuditEvent {
    /// A boot was given them.
    Injected,
    /// One was stored.
    Set,
    /// One was deleted.
    Deleted,
    /// One was shown.
    Revealed,
    /// All were encrypted with another master key.
    Rotated,
}

impl fmt::Display for AuditEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Injected => "injected",
            Self::Set => "set",
            Self::Deleted => "deleted",
            Self::Revealed => "revealed",
            Self::Rotated => "rotated",
        })
    }
}

/// A line of the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// When.
    pub ts: Timestamp,
    /// What.
    pub event: AuditEvent,
    /// Which: names, `K=secret.NAME` for a variable of another name, `NAME:PATH` for a file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<String>,
    /// To whom, for [`AuditEvent::Injected`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance_id: Option<InstanceId>,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub handle: Option<Handle>,
    /// Which boot of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm_id: Option<VmId>,
}
