//! The primary process: started once, its output kept in [`Logs`], its end remembered until the machine is gone.

use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use aegis_proto::control::{Process, StartFailure, Streams};
use aegis_proto::lines::LineSplitter;
use aegis_proto::logs::OutputStream;
use aegis_types::{ExitStatus, TerminalSize};
use tokio::time::{Instant, sleep_until};

use crate::attach::Attachments;
use crate::environment::{self, Environment};
use crate::logs::Logs;
use crate::output::{Output, OutputEvent};
use crate::reaper::{Reaper, Started};
use crate::sys::{LaunchStreams, Sys};
use crate::{launch, user};

/// An unfinished line is shown after this pause: it may be a prompt.
const FLUSH_AFTER: Duration = Duration::from_millis(100);
/// Small enough that the lines of one read never skip the quarter of the ring that is the warning.
const READ_BYTES: usize = 8 * 1024;

/// Until somebody attaches who has another one.
const SIZE_DEFAULT: TerminalSize = TerminalSize { rows: 24, cols: 80 };

/// Why the primary was not started.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(crate) enum RunError {
    #[error("the primary process was started already")]
    AlreadyStarted,
    #[error("{}", .0.message)]
    Failed(StartFailure),
}

#[derive(Default)]
struct State {
    /// It is being started.
    starting: bool,
    pid: Option<u32>,
    exit: Option<ExitStatus>,
    environment: Option<Environment>,
    user: Option<String>,
}

pub(crate) struct Primary {
    state: Mutex<State>,
    pub(crate) logs: Logs,
    pub(crate) attachments: Attachments,
}

impl Primary {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), logs: Logs::new(), attachments: Attachments::new() }
    }

    /// Starts the process. The caller has to connect it with [`Primary::attachments`] and to [`Primary::keep`] its output. A
    /// failed start may be tried again. Blocks as [`Reaper::start`] does.
    ///
    /// # Errors
    /// See [`RunError`].
    pub(crate) fn start(
        &self,
        sys: &dyn Sys,
        reaper: &Reaper,
        process: &Process,
        streams: Streams,
    ) -> Result<Started, RunError> {
        {
            let mut state = self.lock();
            if state.starting || state.pid.is_some() {
                return Err(RunError::AlreadyStarted);
            }
            state.starting = true;
        }
        let started = launch_as(sys, reaper, process, streams);
        let mut state = self.lock();
        state.starting = false;
        let (started, environment) = started.map_err(RunError::Failed)?;
        state.pid = Some(started.pid);
        state.environment = Some(environment);
        state.user.clone_from(&process.user);
        Ok(started)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }

    /// Keeps the output until the process ended.
    pub(crate) async fn keep(&self, mut output: Output) {
        self.attachments.first().await;
        let mut buffer = vec![0; READ_BYTES];
        let mut cutters = [Cutter::new(OutputStream::Stdout), Cutter::new(OutputStream::Stderr)];
        let status = loop {
            let pause = cutters.iter().filter_map(|cutter| cutter.unfinished_since).min();
            tokio::select! {
                event = output.next(&mut buffer) => match event {
                    OutputEvent::Data(stream, count) => {
                        let [stdout, stderr] = &mut cutters;
                        let cutter = if stream == OutputStream::Stdout { stdout } else { stderr };
                        self.attachments.show(stream, &buffer[..count]).await;
                        self.logs.push(stream, cutter.push(&buffer[..count])).await;
                    }
                    OutputEvent::Ended(status) => break status,
                },
                () = sleep_until(pause.unwrap_or_else(Instant::now) + FLUSH_AFTER), if pause.is_some() => {
                    for cutter in &mut cutters {
                        let due = cutter.unfinished_since.is_some_and(|t| t.elapsed() >= FLUSH_AFTER);
                        if due {
                            self.logs.push(cutter.stream, cutter.flush()).await;
                        }
                    }
                }
            }
        };
        for mut cutter in cutters {
            self.logs.push(cutter.stream, cutter.flush()).await;
        }
        self.attachments.ended(status);
        self.lock().exit = Some(status);
        self.logs.finish(status);
    }

    /// Pid and end, as far as there are any.
    pub(crate) fn status(&self) -> (Option<u32>, Option<ExitStatus>) {
        let state = self.lock();
        (state.pid, state.exit)
    }

    /// The user that it was started for, unless that is root.
    pub(crate) fn user(&self) -> Option<String> {
        self.lock().user.clone()
    }

    /// What other processes start from: the primary's environment once there is one.
    pub(crate) fn environment(&self) -> Environment {
        let state = self.lock();
        state.environment.clone().unwrap_or_else(environment::base)
    }
}

/// The process and its environment.
fn launch_as(
    sys: &dyn Sys,
    reaper: &Reaper,
    process: &Process,
    streams: Streams,
) -> Result<(Started, Environment), StartFailure> {
    let user = process.user.as_deref().map(|name| user::find(sys, name)).transpose()?;
    let base = match &user {
        Some(user) => environment::at_home(environment::base(), &user.home),
        None => environment::base(),
    };
    let environment = environment::overlay(&base, &process.env);
    let ends = match streams {
        Streams { tty: true, .. } => LaunchStreams::Terminal(SIZE_DEFAULT),
        Streams { stdin, .. } => LaunchStreams::Pipes { stdin },
    };
    let launch = launch::prepare(process, &environment, ends, user.map(|user| user.credentials))?;
    let started = reaper.start(&launch);
    let started = started.map_err(|error| launch::exec_failure(&launch, &process.command[0], error))?;
    Ok((started, environment))
}

/// The lines of one stream.
struct Cutter {
    stream: OutputStream,
    splitter: LineSplitter,
    unfinished_since: Option<Instant>,
}

impl Cutter {
    fn new(stream: OutputStream) -> Self {
        Self { stream, splitter: LineSplitter::default(), unfinished_since: None }
    }

    fn push(&mut self, bytes: &[u8]) -> Vec<aegis_proto::lines::OutputLine> {
        self.unfinished_since = (!bytes.ends_with(b"\n")).then(Instant::now);
        self.splitter.push(bytes)
    }

    fn flush(&mut self) -> Vec<aegis_proto::lines::OutputLine> {
        self.unfinished_since = None;
        self.splitter.flush().into_iter().collect()
    }
}
