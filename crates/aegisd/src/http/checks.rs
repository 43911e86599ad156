//! What is refused of a process before a guest is asked.

use super::error::ApiError;

/// Refuses what no guest could execute.
pub(super) fn check_process<'a>(
    command: &[String],
    env: impl Iterator<Item = (&'a String, &'a String)>,
    workdir: Option<&str>,
) -> Result<(), ApiError> {
    match command.first() {
        None => return Err(ApiError::invalid("`command` is required: a program and its arguments")),
        Some(program) if program.is_empty() => {
            return Err(ApiError::invalid("the program in `command` is empty"));
        }
        Some(_) => {}
    }
    if command.iter().any(|argument| argument.contains('\0')) {
        return Err(ApiError::invalid("an argument in `command` contains a NUL byte"));
    }
    check_surroundings(env, workdir)
}

/// Refuses an environment and a working directory that no process could have.
pub(super) fn check_surroundings<'a>(
    env: impl Iterator<Item = (&'a String, &'a String)>,
    workdir: Option<&str>,
) -> Result<(), ApiError> {
    check_env(env)?;
    match workdir {
        Some(dir) if !dir.starts_with('/') || dir.contains('\0') => {
            Err(ApiError::invalid("`workdir` must be an absolute path in the guest"))
        }
        _ => Ok(()),
    }
}

/// Longer than any name of a user and a group.
const USER_MAX: usize = 256;

/// Refuses what names no user. Whether there is one the guest knows.
pub(super) fn check_user(user: Option<&str>) -> Result<(), ApiError> {
    match user {
        Some(user) if user.is_empty() || user.len() > USER_MAX || user.chars().any(char::is_control) => {
            Err(ApiError::invalid("`user` must be USER or USER:GROUP, names or numbers of the guest"))
        }
        _ => Ok(()),
    }
}

/// Refuses an environment that no process could have.
pub(super) fn check_env<'a>(env: impl Iterator<Item = (&'a String, &'a String)>) -> Result<(), ApiError> {
    for (name, value) in env {
        if name.is_empty() || name.contains(['=', '\0']) {
            let name: String = name.escape_debug().take(80).collect();
            return Err(ApiError::invalid(format!("`{name}` cannot be the name of an environment variable")));
        }
        if value.contains('\0') {
            return Err(ApiError::invalid(format!(
                "the value of environment variable `{name}` contains a NUL byte"
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn check(command: &[&str], env: &[(&str, &str)], workdir: Option<&str>) -> bool {
        let command: Vec<String> = command.iter().map(|&s| s.to_owned()).collect();
        let env: Vec<(String, String)> = env.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        check_process(&command, env.iter().map(|(k, v)| (k, v)), workdir).is_ok()
    }

    #[test]
    fn only_what_a_guest_can_execute_is_accepted() {
        assert!(check(&["sh", "", "-c"], &[("A", "=\n")], Some("/srv")));
        assert!(!check(&[], &[], None));
        assert!(!check(&[""], &[], None));
        assert!(!check(&["a", "b\0"], &[], None));
        for name in ["", "A=B", "A\0"] {
            assert!(!check(&["a"], &[(name, "")], None), "{name:?}");
        }
        assert!(!check(&["a"], &[("A", "\0")], None));
        assert!(!check(&["a"], &[], Some("srv")) && !check(&["a"], &[], Some("")));
    }
}
