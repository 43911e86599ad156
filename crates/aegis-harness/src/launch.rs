//! From a request to a process: finding the program, and saying precisely why it did not start.

use std::ffi::CString;
use std::io;
use std::path::{Path, PathBuf};

use aegis_proto::control::{Process, StartFailure, StartFailureKind};
use rustix::fs::{Access, access};
use rustix::io::Errno;

use crate::environment::{DEFAULT_PATH, Environment};
use crate::sys::{Credentials, Launch, LaunchStreams};

const WORKDIR_DEFAULT: &str = "/";

/// Checks a request against the file system. `environment` is the final one.
///
/// # Errors
/// [`StartFailure`] when the process could not run.
pub(crate) fn prepare(
    process: &Process,
    environment: &Environment,
    streams: LaunchStreams,
    credentials: Option<Credentials>,
) -> Result<Launch, StartFailure> {
    let name = process.command.first().map_or("", String::as_str);
    if name.is_empty() {
        return Err(failure(StartFailureKind::Invalid, "the command is empty"));
    }
    let arguments = process.command.iter().map(|text| c_string(text)).collect::<Result<_, _>>()?;
    let variables = environment.iter().map(variable).collect::<Result<_, _>>()?;
    let workdir = process.workdir.as_deref().unwrap_or(WORKDIR_DEFAULT);
    let workdir_c = c_string(workdir)?;
    check_workdir(Path::new(workdir))?;
    let path = environment.get("PATH").map_or(DEFAULT_PATH, String::as_str);
    let program = find_program(name, path, Path::new(workdir))?;
    let program = c_string(program.to_str().expect("joined from text"))?;
    Ok(Launch { program, arguments, environment: variables, workdir: workdir_c, streams, credentials })
}

fn failure(kind: StartFailureKind, message: impl Into<String>) -> StartFailure {
    StartFailure { kind, message: message.into() }
}

fn c_string(text: &str) -> Result<CString, StartFailure> {
    CString::new(text).map_err(|_| failure(StartFailureKind::Invalid, "the request contains a NUL byte"))
}

fn variable((key, value): (&String, &String)) -> Result<CString, StartFailure> {
    if key.is_empty() || key.contains('=') {
        return Err(failure(StartFailureKind::Invalid, format!("`{key}` cannot be the name of a variable")));
    }
    c_string(&format!("{key}={value}"))
}

fn check_workdir(workdir: &Path) -> Result<(), StartFailure> {
    let bad = |why: String| {
        failure(StartFailureKind::BadWorkdir, format!("working directory `{}`: {why}", workdir.display()))
    };
    if !workdir.is_absolute() {
        return Err(bad("it must be absolute".to_owned()));
    }
    match workdir.metadata() {
        Ok(found) if !found.is_dir() => Err(bad("not a directory".to_owned())),
        Ok(_) => access(workdir, Access::EXEC_OK).map_err(|e| bad(describe(e.into()))),
        Err(e) => Err(bad(describe(e))),
    }
}

fn find_program(name: &str, path: &str, workdir: &Path) -> Result<PathBuf, StartFailure> {
    if name.contains('/') {
        let program = workdir.join(name);
        return match executable(&program) {
            Ok(()) => Ok(program),
            Err(errno) => Err(start_failure(name, errno.into())),
        };
    }
    let mut refused = Errno::NOENT;
    // An empty element means the working directory, and `join` with an absolute one gives that one.
    for directory in path.split(':') {
        let program = workdir.join(directory).join(name);
        match executable(&program) {
            Ok(()) => return Ok(program),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            // Shells go on, too, and mention this one only when nothing better comes.
            Err(errno) => refused = errno,
        }
    }
    Err(start_failure(name, refused.into()))
}

fn executable(program: &Path) -> Result<(), Errno> {
    let found = program.metadata().map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::NOENT))?;
    if found.is_dir() {
        return Err(Errno::ISDIR);
    }
    access(program, Access::EXEC_OK)
}

/// What a failed search or exec means to the caller.
fn start_failure(name: &str, error: io::Error) -> StartFailure {
    use StartFailureKind::{Invalid, NotExecutable, NotFound, Resources};
    let cannot = |kind, why: &str| failure(kind, format!("cannot run `{name}`: {why}"));
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => cannot(NotFound, "not found"),
        Some(Errno::ISDIR) => cannot(NotExecutable, "it is a directory"),
        Some(Errno::NOEXEC) => cannot(
            NotExecutable,
            "it is neither a program for this machine nor a script that starts with `#!`",
        ),
        Some(Errno::ACCESS | Errno::PERM | Errno::TXTBSY | Errno::LOOP | Errno::LIBBAD) => {
            cannot(NotExecutable, &describe(error))
        }
        Some(Errno::TOOBIG) => cannot(Invalid, "arguments and environment are too large"),
        _ => cannot(Resources, &describe(error)),
    }
}

/// What a failed exec of a program that exists means to the caller.
pub(crate) fn exec_failure(launch: &Launch, name: &str, error: io::Error) -> StartFailure {
    let exists = launch.program.to_str().is_ok_and(|program| Path::new(program).exists());
    if exists && error.kind() == io::ErrorKind::NotFound {
        let message = format!("cannot run `{name}`: its interpreter or loader is missing");
        return failure(StartFailureKind::NotExecutable, message);
    }
    start_failure(name, error)
}

/// The text of an error as programs print it.
fn describe(error: io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "not found".to_owned(),
        io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        _ => error.to_string(),
    }
}
