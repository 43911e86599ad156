//! Extended attributes as they follow an inode.

use std::collections::BTreeMap;

use crate::error::EntryProblem;

const HEADER_SIZE: usize = 12;
/// The inode counts 4-byte units in 16 bits; the header is the first.
const ENCODED_MAX: usize = HEADER_SIZE + 4 * (u16::MAX as usize - 1);

/// Attributes in on-disk form (empty if there are none), and how many had a name that EROFS cannot express: it
/// knows the namespaces of Linux, not those of other systems.
pub(crate) fn encode_xattrs(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Result<(Box<[u8]>, u64), EntryProblem> {
    let mut skipped = 0;
    let mut entries = BTreeMap::new();
    for (name, value) in xattrs {
        match split_name(name) {
            Some(key) => {
                entries.insert(key, value);
            }
            None => skipped += 1,
        }
    }
    if entries.is_empty() {
        return Ok((Box::default(), skipped));
    }
    let mut out = vec![0; HEADER_SIZE];
    for ((index, suffix), value) in entries {
        let suffix_len = u8::try_from(suffix.len()).map_err(|_| EntryProblem::XattrTooLarge)?;
        let value_len = u16::try_from(value.len()).map_err(|_| EntryProblem::XattrTooLarge)?;
        out.extend([suffix_len, index]);
        out.extend(value_len.to_le_bytes());
        out.extend(suffix);
        out.extend(value);
        out.resize(out.len().next_multiple_of(4), 0);
    }
    if out.len() > ENCODED_MAX {
        return Err(EntryProblem::XattrTooLarge);
    }
    Ok((out.into(), skipped))
}

/// Namespace index and the rest of the name.
fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    const NAMESPACES: [(u8, &[u8]); 3] = [(1, b"user."), (4, b"trusted."), (6, b"security.")];
    match name {
        b"system.posix_acl_access" => return Some((2, b"")),
        b"system.posix_acl_default" => return Some((3, b"")),
        _ if name.contains(&0) => return None,
        _ => {}
    }
    NAMESPACES.iter().find_map(|&(index, prefix)| {
        name.strip_prefix(prefix).filter(|suffix| !suffix.is_empty()).map(|suffix| (index, suffix))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn names_outside_the_linux_namespaces_are_counted_not_stored() {
        let (bytes, skipped) =
            encode_xattrs(&[(b"com.apple.provenance".to_vec(), vec![1]), (b"user.".to_vec(), vec![])])
                .unwrap();
        assert_eq!((bytes.len(), skipped), (0, 2));
    }

    #[test]
    fn sizes_beyond_the_format_are_refused() {
        let one = |name: Vec<u8>, value: usize| (name, vec![0; value]);
        assert!(encode_xattrs(&[one(b"user.a".to_vec(), 65535)]).is_ok());
        assert!(encode_xattrs(&[one(b"user.a".to_vec(), 65536)]).is_err());
        assert!(encode_xattrs(&[one([b"user.", &[b'a'; 256][..]].concat(), 1)]).is_err());
        let many: Vec<_> = (0..5).map(|i| one(format!("user.{i}").into_bytes(), 65000)).collect();
        assert!(encode_xattrs(&many).is_err());
    }
}
