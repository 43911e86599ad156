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

/// Size of the disk that a guest can write, in MiB. Space is taken when it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "u64", into = "u64")]
pub struct DiskSize(u32);

impl DiskSize {
    /// Disk of an instance that asks for nothing else.
    pub const DEFAULT: DiskSize = DiskSize(10 << 10);
    /// The smallest one: every other is grown from it.
    pub const MIN: DiskSize = DiskSize(64);
    /// The largest one: the file system of the smallest has room for the descriptors of no more.
    pub const MAX: DiskSize = DiskSize(1 << 20);

    /// Checks the bounds: 64 MiB to 1 TiB.
    ///
    /// # Errors
    /// [`InvalidUnit`] outside the bounds.
    pub fn new(mib: u64) -> Result<Self, InvalidUnit> {
        let (min, max) = (u64::from(Self::MIN.0), u64::from(Self::MAX.0));
        match u32::try_from(mib) {
            Ok(size) if (Self::MIN.0..=Self::MAX.0).contains(&size) => Ok(Self(size)),
            _ => Err(InvalidUnit { what: "disk size in MiB", min, max, value: mib }),
        }
    }

    /// The size in MiB.
    pub fn get(self) -> u32 {
        self.0
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) << 20
    }
}

impl TryFrom<u64> for DiskSize {
    type Error = InvalidUnit;
    fn try_from(mib: u64) -> Result<Self, InvalidUnit> {
        Self::new(mib)
    }
}

impl From<DiskSize> for u64 {
    fn from(size: DiskSize) -> u64 {
        u64::from(size.0)
    }
}

impl fmt::Display for DiskSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1 << 10) {
            write!(f, "{} GiB", self.0 >> 10)
        } else {
            write!(f, "{} MiB", self.0)
        }
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
        assert!(DiskSize::new(63).is_err() && DiskSize::new(64) == Ok(DiskSize::MIN));
        assert!(DiskSize::new(1 << 20) == Ok(DiskSize::MAX) && DiskSize::new((1 << 20) + 1).is_err());
        assert!(DiskSize::new(u64::MAX).is_err());
        assert!(Vcpus::new(0).is_err() && Vcpus::new(64).is_ok() && Vcpus::new(65).is_err());
    }

    #[test]
    fn sizes_of_disks_read_well() {
        let text = |mib| DiskSize::new(mib).map(|size| size.to_string());
        assert_eq!(text(10 << 10).as_deref(), Ok("10 GiB"));
        assert_eq!(text(1500).as_deref(), Ok("1500 MiB"));
        assert_eq!(DiskSize::MAX.bytes(), 1 << 40);
    }
}
