//! AES-256-GCM over values, bound to what they are the value of.
//!
//! ```text
//! sealed = version (1) ‖ nonce (12 random bytes) ‖ ciphertext ‖ tag (16)
//! associated data = "aegisvm " ‖ purpose ‖ NUL ‖ name
//! ```
//! A sealed value that is moved to another name, or changed in any bit, does not open.

use aegis_types::SecretBytes;
use aes_gcm::aead::{Aead as _, KeyInit as _, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use zeroize::Zeroizing;

/// Length of a master key, in bytes.
pub(super) const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;
const VERSION: u8 = 1;

/// What a sealed value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose<'a> {
    /// The secret of this name.
    Secret(&'a str),
    /// What the current boot of this instance was given.
    Injected(&'a str),
    /// By which the right key is recognised.
    Check,
}

impl Purpose<'_> {
    fn associated_data(self) -> Vec<u8> {
        let (purpose, name) = match self {
            Self::Secret(name) => ("secret", name),
            Self::Injected(name) => ("injected", name),
            Self::Check => ("key check", ""),
        };
        format!("aegisvm {purpose}\0{name}").into_bytes()
    }
}

/// It was not sealed with this key for this purpose, or was changed since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it does not open with the master key")]
pub(super) struct Unopenable;

/// The key of everything that is sealed. Wiped when it is dropped.
#[derive(Clone)]
pub(super) struct MasterKey(Zeroizing<[u8; KEY_BYTES]>);

impl std::fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MasterKey([redacted])")
    }
}

impl MasterKey {
    /// A new one.
    pub(super) fn random() -> Self {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *key).expect("the kernel has random bytes");
        Self(key)
    }

    /// `None` for another number of bytes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        (bytes.len() == KEY_BYTES).then(|| {
            key.copy_from_slice(bytes);
            Self(key)
        })
    }

    pub(super) fn expose(&self) -> &[u8] {
        &*self.0
    }

    fn cipher(&self) -> Aes256Gcm {
        Aes256Gcm::new_from_slice(&*self.0).expect("a key has the right length")
    }

    pub(super) fn seal(&self, purpose: Purpose<'_>, value: &[u8]) -> Vec<u8> {
        let mut nonce = [0; NONCE_BYTES];
        getrandom::fill(&mut nonce).expect("the kernel has random bytes");
        let payload = Payload { msg: value, aad: &purpose.associated_data() };
        let ciphertext = self.cipher().encrypt(&Nonce::from(nonce), payload);
        let ciphertext = ciphertext.expect("values are far shorter than what the cipher takes");
        [&[VERSION][..], &nonce, &ciphertext].concat()
    }

    pub(super) fn open(&self, purpose: Purpose<'_>, sealed: &[u8]) -> Result<SecretBytes, Unopenable> {
        let (&version, rest) = sealed.split_first().ok_or(Unopenable)?;
        let (nonce, ciphertext) = rest.split_first_chunk::<NONCE_BYTES>().ok_or(Unopenable)?;
        if version != VERSION {
            return Err(Unopenable);
        }
        let payload = Payload { msg: ciphertext, aad: &purpose.associated_data() };
        let opened = self.cipher().decrypt(&Nonce::from(*nonce), payload);
        opened.map(SecretBytes::new).map_err(|_| Unopenable)
    }

    /// What [`MasterKey::is_checked_by`] recognises.
    pub(super) fn check(&self) -> Vec<u8> {
        self.seal(Purpose::Check, b"")
    }

    /// Whether it is the key that made this check.
    pub(super) fn is_checked_by(&self, check: &[u8]) -> bool {
        self.open(Purpose::Check, check).is_ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn what_was_sealed_opens_exactly_and_never_looks_the_same() {
        let key = MasterKey::random();
        for value in [&b""[..], b"x", &[7; 70_000]] {
            let (first, second) =
                (key.seal(Purpose::Secret("A"), value), key.seal(Purpose::Secret("A"), value));
            assert_eq!(first.len(), 1 + 12 + value.len() + 16);
            assert!(first[1..13] != second[1..13] && first[13..] != second[13..]);
            for sealed in [first, second] {
                assert_eq!(key.open(Purpose::Secret("A"), &sealed).unwrap().expose(), value);
            }
        }
        assert_eq!(format!("{key:?}"), "MasterKey([redacted])");
    }

    #[test]
    fn what_was_changed_moved_or_sealed_with_another_key_does_not_open() {
        let key = MasterKey::random();
        let sealed = key.seal(Purpose::Secret("A"), b"value");
        for at in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[at] ^= 1;
            assert!(key.open(Purpose::Secret("A"), &changed).is_err(), "byte {at}");
            assert!(key.open(Purpose::Secret("A"), &sealed[..at]).is_err(), "{at} bytes");
        }
        assert!(key.open(Purpose::Secret("B"), &sealed).is_err());
        assert!(key.open(Purpose::Injected("A"), &sealed).is_err());
        assert!(MasterKey::random().open(Purpose::Secret("A"), &sealed).is_err());
    }

    #[test]
    fn a_key_has_32_bytes_and_is_known_by_its_check() {
        let key = MasterKey::random();
        let again = MasterKey::from_bytes(key.expose()).unwrap();
        assert!(again.is_checked_by(&key.check()) && !MasterKey::random().is_checked_by(&key.check()));
        assert!(MasterKey::from_bytes(&[0; 31]).is_none() && MasterKey::from_bytes(&[0; 33]).is_none());
    }
}
