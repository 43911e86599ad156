//! Registries of images, and who the daemon is to them.

use aegis_types::SecretBytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A registry that the daemon has credentials for. They are never shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegistrySummary {
    /// Host, with its port if it has one.
    pub registry: String,
    /// User name there, unless an access token stands for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
}

/// Checks credentials at a registry and keeps them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RegistryLogin {
    /// Host, with its port if it has one, such as `ghcr.io` or `127.0.0.1:5000`.
    pub registry: String,
    /// User name there.
    pub username: String,
    /// Password or access token.
    #[schema(value_type = String)]
    pub password: SecretBytes,
}

impl std::fmt::Debug for RegistryLogin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegistryLogin({} as {})", self.registry, self.username)
    }
}
