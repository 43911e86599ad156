//! Keys that leave a process with a terminal and let it go on.
//!
//! They come among what is typed, perhaps one at a time. What only looked like their beginning is passed on.

use std::str::FromStr;

/// What must be typed, in the syntax of Docker: keys with commas between them, each a character or `ctrl-` and one of `a` to
/// `z`, `@`, `[`, `\`, `]`, `^` and `_`. Empty: nothing leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DetachKeys(Vec<u8>);

impl FromStr for DetachKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self(Vec::new()));
        }
        text.split(',').map(key).collect::<Result<_, _>>().map(Self)
    }
}

fn key(name: &str) -> Result<u8, String> {
    let control = name.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("ctrl-"));
    match (name.as_bytes(), control) {
        (&[byte @ b' '..=b'~'], _) => Ok(byte),
        // What the control key does to a character of ASCII.
        (&[.., byte @ (b'a'..=b'z' | b'A'..=b'Z' | b'@' | b'['..=b'_')], true) if name.len() == 6 => {
            Ok(byte & 0x1f)
        }
        _ => Err(format!("`{name}` is no key: use characters and ctrl-CHARACTER, as in ctrl-p,ctrl-q")),
    }
}

/// Finds the keys in pieces of input.
#[derive(Debug)]
pub(crate) struct Matcher {
    keys: Vec<u8>,
    /// So many of the keys were typed last, and are held back.
    held: usize,
}

/// What a piece of input contains.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Typed {
    /// This, for the process.
    Input(Vec<u8>),
    /// This, then all of the keys. What follows them is for nobody.
    Detach(Vec<u8>),
}

impl Matcher {
    pub(crate) fn new(keys: &DetachKeys) -> Self {
        Self { keys: keys.0.clone(), held: 0 }
    }

    /// The next piece.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Typed {
        if self.keys.is_empty() {
            return Typed::Input(piece.to_vec());
        }
        let mut passed = Vec::with_capacity(self.held + piece.len());
        for &byte in piece {
            let mut candidate = self.keys[..self.held].to_vec();
            candidate.push(byte);
            // The keys may begin anew inside of what looked like their beginning.
            let skipped = (0..=candidate.len()).find(|&at| self.keys.starts_with(&candidate[at..]));
            let skipped = skipped.unwrap_or(candidate.len());
            passed.extend_from_slice(&candidate[..skipped]);
            self.held = candidate.len() - skipped;
            if self.held == self.keys.len() {
                self.held = 0;
                return Typed::Detach(passed);
            }
        }
        Typed::Input(passed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn keys(text: &str) -> DetachKeys {
        text.parse().unwrap()
    }

    #[test]
    fn the_syntax_is_dockers() {
        for (text, bytes) in [
            ("ctrl-p,ctrl-q", &[16, 17][..]),
            ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", &[0, 27, 28, 29, 30, 31]),
            ("Ctrl-P,a,A,~", b"\x10aA~"),
            ("", b""),
        ] {
            assert_eq!(keys(text), DetachKeys(bytes.to_vec()), "{text}");
        }
        for bad in ["ctrl-", "ctrl-1", "ctrl-pq", "ab", "a,,b", ",", "ä", "ctrl-ä", "alt-x"] {
            assert!(DetachKeys::from_str(bad).unwrap_err().contains("is no key"), "{bad}");
        }
    }

    #[test]
    fn the_keys_are_found_wherever_the_input_is_cut() {
        let input = b"ab\x10\x11cd";
        for cut in 0..=input.len() {
            let mut matcher = Matcher::new(&keys("ctrl-p,ctrl-q"));
            let mut passed = Vec::new();
            let mut found = false;
            for piece in [&input[..cut], &input[cut..]] {
                match matcher.push(piece) {
                    Typed::Input(bytes) if !found => passed.extend(bytes),
                    Typed::Input(_) => {}
                    Typed::Detach(bytes) => {
                        passed.extend(bytes);
                        found = true;
                    }
                }
            }
            assert!(found && passed == b"ab", "{cut}: {passed:?}");
        }
    }

    #[test]
    fn what_only_looked_like_the_keys_is_passed_on() {
        let mut matcher = Matcher::new(&keys("ctrl-p,ctrl-q"));
        assert_eq!(matcher.push(b"x\x10"), Typed::Input(b"x".to_vec()));
        assert_eq!(matcher.push(b"y"), Typed::Input(b"\x10y".to_vec()));
        assert_eq!(matcher.push(b"\x10\x10"), Typed::Input(b"\x10".to_vec()));
        assert_eq!(matcher.push(b"\x11"), Typed::Detach(vec![]));
    }

    #[test]
    fn keys_that_begin_inside_of_themselves_are_found() {
        let mut matcher = Matcher::new(&keys("a,b,a,c"));
        assert_eq!(matcher.push(b"ababac-"), Typed::Detach(b"ab".to_vec()));
        let mut matcher = Matcher::new(&keys("a,a,b"));
        assert_eq!(matcher.push(b"aaab"), Typed::Detach(b"a".to_vec()));
    }

    #[test]
    fn without_keys_everything_is_passed_on() {
        let mut matcher = Matcher::new(&keys(""));
        assert_eq!(matcher.push(b"\x10\x11"), Typed::Input(b"\x10\x11".to_vec()));
    }
}
