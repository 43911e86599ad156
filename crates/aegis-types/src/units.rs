//! Sizes with their bounds.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A quantity outside its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be between {min} and {max}, not {value}")]
pub struct InvalidUnit {
    what: &'static str,
    min: u64,
    max: u64,
    value: u64,
}

/// Guest memory in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "u64", into = "u64")]
pub struct Mib(u32);

impl Mib {
    /// Memory of an instance that asks for nothing else.
    pub const DEFAULT: Mib = Mib(512);
    const MIN: u64 = 128;
    const MAX: u64 = 1 << 20;

    /// Checks the bounds: 128 MiB (less does not boot) to 1 TiB.
    ///
    /// # Errors
    /// [`InvalidUnit`] outside the bounds.
    pub fn new(mib: u64) -> Result<Self, InvalidUnit> {
        if (Self::MIN..=Self::MAX).contains(&mib) {
            Ok(Self(u32::try_from(mib).expect("bounded above by 2^20")))
        } else {
            Err(InvalidUnit { what: "memory in MiB", min: Self::MIN, max: Self::MAX, value: mib })
        }
    }

    /// The size in MiB.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for Mib {
    type Error = InvalidUnit;
    fn try_from(mib: u64) -> Result<Self, InvalidUnit> {
        Self::new(mib)
    }
}

impl From<Mib> for u64 {
    fn from(mib: Mib) -> u64 {
        u64::from(mib.0)
    }
}

impl fmt::Display for Mib {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.0)
    }
}

/// Number of virtual CPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "u64", into = "u64")]
pub struct Vcpus(u8);

impl Vcpus {
    /// CPUs of an instance that asks for nothing else.
    pub const DEFAULT: Vcpus = Vcpus(1);
    const MAX: u64 = 64;

    /// Checks the bounds: 1 to 64.
    ///
    /// # Errors
    /// [`InvalidUnit`] outside the bounds.
    pub fn new(count: u64) -> Result<Self, InvalidUnit> {
        if (1..=Self::MAX).contains(&count) {
            Ok(Self(u8::try_from(count).expect("bounded above by 64")))
        } else {
            Err(InvalidUnit { what: "number of CPUs", min: 1, max: Self::MAX, value: count })
        }
    }

    /// The number of CPUs.
    pub fn get(self) -> u8 {
        self.0
    }
}

impl TryFrom<u64> for Vcpus {
    type Error = InvalidUnit;
    fn try_from(count: u64) -> Result<Self, InvalidUnit> {
        Self::new(count)
    }
}

impl From<Vcpus> for u64 {
    fn from(vcpus: Vcpus) -> u64 {
        u64::from(vcpus.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_inclusive() {
        assert!(Mib::new(127).is_err() && Mib::new(128).is_ok());
        assert!(Mib::new(1 << 20).is_ok() && Mib::new((1 << 20) + 1).is_err());
        assert!(Vcpus::new(0).is_err() && Vcpus::new(64).is_ok() && Vcpus::new(65).is_err());
    }
}
