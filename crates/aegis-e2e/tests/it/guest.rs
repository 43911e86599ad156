//! What runs in the guests of several tests.

use aegis_e2e::{Aegis, net};

/// Answers "PID COUNT QUESTION" on port 80; see the file.
pub(crate) const COUNTER: &[&str] = &["python3", "-SE", "-c", include_str!("../../guest/counter.py")];
/// Echo, goodbye and HTTP; see the file.
pub(crate) const SERVERS: &[&str] = &["python3", "-SE", "-c", include_str!("../../guest/servers.py")];
/// Starts fast and answers every connection to port 80.
pub(crate) const HELLO: &[&str] = &[
    "sh",
    "-c",
    "printf '#!/bin/sh\\necho hello\\n' > /tmp/hello; chmod +x /tmp/hello; nc -ll -p 80 -e /tmp/hello",
];

/// An answer of [`COUNTER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Count {
    pub(crate) pid: u32,
    pub(crate) count: u32,
}

impl Count {
    /// The answer that the same process gives next.
    pub(crate) fn next(self) -> Self {
        Self { count: self.count + 1, ..self }
    }
}

/// Asks the counter of an instance, whatever state that is in.
#[track_caller]
pub(crate) fn count(aegis: &Aegis, name: &str) -> Count {
    let answer = net::ask(aegis.port(name, 80), "?\n").unwrap();
    let mut words = answer.split(' ').map(str::parse);
    let (Some(Ok(pid)), Some(Ok(count))) = (words.next(), words.next()) else {
        panic!("no answer of the counter: {answer:?}");
    };
    Count { pid, count }
}
