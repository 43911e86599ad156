//! `aegis shell`.

use std::io::{self, IsTerminal as _};

use aegis_api::ExecRequest;

use super::{Context, exec};
use crate::args::{Shell, Streams};
use crate::error::CliError;

/// Becomes the shell that `/etc/passwd` has for the user of this process. Images need not have `getent`, `id` or anything else
/// beside `sh`, so nothing is run before that. Accounts whose shell is there to keep people out get `/bin/sh`: whoever comes
/// this way may do anything in the guest already. It is no login shell, which would replace the `PATH` of the image.
const USERS_SHELL: &str = r#"
SHELL=$(
  exec 2>/dev/null
  while read -r key uid rest; do
    [ "$key" = Uid: ] && break
  done </proc/self/status
  while IFS=: read -r name password id group about home shell || [ "$name" ]; do
    [ "$id" = "$uid" ] && echo "$shell" && break
  done </etc/passwd
)
case $SHELL in */nologin | */false) SHELL= ;; esac
[ -x "$SHELL" ] || SHELL=/bin/sh
export SHELL
exec "$SHELL"
"#;

pub(crate) async fn run(context: &Context, args: Shell) -> Result<u8, CliError> {
    let request = ExecRequest {
        command: ["/bin/sh", "-c", USERS_SHELL].map(str::to_owned).to_vec(),
        env: args.env.into_iter().collect(),
        workdir: args.workdir,
        user: args.user,
        timeout_ms: None,
    };
    // Commands can be piped into it as well.
    let streams = Streams { interactive: true, tty: io::stdin().is_terminal() };
    exec::with_streams(context, &args.target.target, request, streams, &args.detach_keys).await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::io::Write as _;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn the_shell_of_the_user_gets_the_input_and_ends_with_its_code() {
        let users = std::fs::read_to_string("/etc/passwd").unwrap();
        let uid = rustix::process::getuid().as_raw().to_string();
        let line = users.lines().find(|line| line.split(':').nth(2) == Some(&uid));
        let shell = line.and_then(|line| line.split(':').nth(6)).unwrap_or_default();
        let closed = shell.is_empty() || shell.ends_with("/nologin") || shell.ends_with("/false");
        let closed = closed || !std::path::Path::new(shell).exists();
        let expected = if closed { "/bin/sh" } else { shell };

        let mut child = Command::new("/bin/sh")
            .args(["-c", USERS_SHELL])
            .env_clear()
            .env("SHELL", "/bin/other")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"echo \"$SHELL\"; exit 7\n").unwrap();
        let output = child.wait_with_output().unwrap();
        let texts = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert_eq!((output.status.code(), texts), (Some(7), [format!("{expected}\n"), String::new()]));
    }
}
