//! Our standard streams, our terminal and our signals for those of a process in a guest.
//!
//! Two sides that do not wait for each other: one feeds the process, in a task of its own, and one writes its output. Were
//! they one, a process that writes before it reads on would be held up for ever.

use std::error::Error;
use std::io;
use std::time::Duration;

use aegis_api::{ExecDone, LogStream, ProcessOutput};
use aegis_client::{ClientError, Process, ProcessReceiver, ProcessSender};
use aegis_types::frame::CHUNK_MAX;
use aegis_types::{ProcessInput, TerminalSize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use crate::detach_keys::{DetachKeys, Matcher, Typed};
use crate::error::{CliError, Kind};
use crate::guest_output::GuestOutput;
use crate::limits::Limits;
use crate::standard_input;
use crate::terminal::{self, RawMode};
use crate::ui;

/// How long a process whose connection is stuck may take to hear that we leave it alone.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);
const SIGHUP: u8 = 1;

/// What a process gets from us.
pub(crate) struct Plan<'a> {
    /// Our standard input.
    pub(crate) stdin: bool,
    /// The size of our terminal, as it was told so far, and how it changes. The process has a terminal then.
    pub(crate) size: Option<TerminalSize>,
    /// Our terminal is in raw mode, and these keys leave the process.
    pub(crate) raw: Option<&'a DetachKeys>,
    /// The first signal that would end us.
    pub(crate) forward_signals: bool,
    /// It goes on if we end before it does.
    pub(crate) leave_alone: bool,
}

/// How it ended.
pub(crate) enum Ended {
    /// The process did, after all of its output.
    Done(ExecDone),
    /// The keys were typed. The process goes on.
    Detached,
    /// Nobody knows how the process ends.
    Lost(ClientError),
}

/// Joins a process and us until one of both ends. `started` is called when it has started. An error means that we ended.
pub(crate) async fn join(
    process: Process,
    plan: &Plan<'_>,
    limits: &mut Limits,
    started: impl FnOnce(),
) -> Result<Ended, CliError> {
    let Process { input, output: mut source } = process;
    let resized = window_changes(plan)?;
    // The terminal is not raw before the process has started: until then the usual keys end us.
    match limits.during(source.next()).await {
        Ok(Ok(_)) => started(),
        Ok(Err(error)) => return Ok(Ended::Lost(error)),
        Err(end) => {
            if plan.leave_alone {
                let _ = tokio::time::timeout(LEAVE_TIMEOUT, leave(input)).await;
            }
            return Err(end);
        }
    }
    let _raw = plan.raw.map(|_| RawMode::begin()).transpose()?;
    let stdin = plan.stdin.then(standard_input::pieces).transpose();
    let stdin = stdin.map_err(|e| CliError::failure("cannot start a thread").because(&e))?;

    // At most one signal and the farewell.
    let (control, controls) = mpsc::channel(2);
    let leave_alone = plan.leave_alone;
    let feeder = Feeder { input, matcher: plan.raw.map(Matcher::new), resized, size: plan.size, leave_alone };
    let mut feeding = JoinSet::new();
    feeding.spawn(feeder.feed(stdin, controls));
    let forward = plan.forward_signals;
    let mut interrupts = Interrupts { limits, forward, control: control.clone() };
    let ended = pass_on(source, &mut feeding, &mut interrupts).await;
    if ended.is_err() && leave_alone && control.try_send(Control::Leave).is_ok() {
        let _ = tokio::time::timeout(LEAVE_TIMEOUT, feeding.join_next()).await;
    }
    ended
}

/// Writes what the process writes, until something ends that.
async fn pass_on(
    mut source: ProcessReceiver,
    feeding: &mut JoinSet<Result<Fed, ClientError>>,
    interrupts: &mut Interrupts<'_>,
) -> Result<Ended, CliError> {
    let mut output = GuestOutput::new();
    let ended = loop {
        let said = tokio::select! {
            biased;
            end = interrupts.passed() => return Err(end),
            Some(fed) = feeding.join_next() => match end_of_feeding(fed)? {
                Some(ended) => break ended,
                None => continue,
            },
            said = source.next() => said,
            flushed = output.flush(), if output.is_pending() => {
                flushed.map_err(|e| ui::output_error(&e))?;
                continue;
            }
        };
        let (stream, bytes) = match said {
            Ok(Some(ProcessOutput::Stdout(bytes))) => (LogStream::Stdout, bytes),
            Ok(Some(ProcessOutput::Stderr(bytes))) => (LogStream::Stderr, bytes),
            Ok(Some(ProcessOutput::Done(done))) => break Ended::Done(done),
            // The client has seen to it that neither comes here.
            Ok(Some(ProcessOutput::Started(_)) | None) => continue,
            Err(error) => break Ended::Lost(error),
        };
        interrupts.during(output.write(stream, &bytes)).await?.map_err(|e| ui::output_error(&e))?;
    };
    interrupts.during(output.flush()).await?.map_err(|e| ui::output_error(&e))?;
    Ok(ended)
}

/// What it means that the process gets nothing more; perhaps nothing.
fn end_of_feeding(fed: Result<Result<Fed, ClientError>, JoinError>) -> Result<Option<Ended>, CliError> {
    let unreadable = |error: &dyn Error| CliError::failure("cannot read standard input").because(error);
    match fed {
        Ok(Ok(Fed::Detached)) => Ok(Some(Ended::Detached)),
        Ok(Ok(Fed::HungUp)) => Err(CliError::new(Kind::Signal(SIGHUP), "the terminal is gone")),
        Ok(Ok(Fed::Unreadable(error))) => Err(unreadable(&error)),
        // A process that is about to end takes no more input. If it is anything else, its output says so.
        Ok(Err(_)) => Ok(None),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(unreadable(&error)),
        },
    }
}

/// Listens before the size is looked at again, so that no change is missed.
fn window_changes(plan: &Plan<'_>) -> Result<Option<Signal>, CliError> {
    let listen = |_| signal(SignalKind::window_change());
    let resized = plan.size.map(listen).transpose();
    resized.map_err(|e| CliError::failure("cannot listen for signals").because(&e))
}

/// What ends us before the process does; the process gets the first signal instead, if it is to have it.
struct Interrupts<'a> {
    limits: &'a mut Limits,
    forward: bool,
    control: mpsc::Sender<Control>,
}

impl Interrupts<'_> {
    /// Cancel safe.
    async fn passed(&mut self) -> CliError {
        loop {
            let end = self.limits.passed().await;
            match end.kind() {
                // Whoever hung up will not send another one.
                Kind::Signal(number) if self.forward && number != SIGHUP => {
                    self.forward = false;
                    // There is room. Nobody takes it when the connection is broken, which the other side finds out.
                    let _ = self.control.try_send(Control::Signal(number));
                }
                _ => return end,
            }
        }
    }

    async fn during<T>(&mut self, future: impl Future<Output = T>) -> Result<T, CliError> {
        tokio::select! {
            biased;
            end = self.passed() => Err(end),
            result = future => Ok(result),
        }
    }
}

enum Control {
    /// The process gets this signal.
    Signal(u8),
    /// We go and the process does not end for it.
    Leave,
}

/// Why the process gets nothing more.
enum Fed {
    /// We have left it alone: the keys were typed, or we were told to.
    Detached,
    /// Our terminal is gone.
    HungUp,
    /// Our input is broken.
    Unreadable(io::Error),
}

struct Feeder {
    input: ProcessSender,
    /// There is a terminal on both sides.
    matcher: Option<Matcher>,
    resized: Option<Signal>,
    size: Option<TerminalSize>,
    leave_alone: bool,
}

impl Feeder {
    /// Goes on after the end of the input, with signals and sizes.
    async fn feed(
        mut self,
        mut stdin: Option<mpsc::Receiver<io::Result<Vec<u8>>>>,
        mut controls: mpsc::Receiver<Control>,
    ) -> Result<Fed, ClientError> {
        self.tell_size().await?;
        loop {
            tokio::select! {
                biased;
                Some(control) = controls.recv() => match control {
                    Control::Signal(number) => self.input.send(ProcessInput::Signal(number)).await?,
                    Control::Leave => return leave(self.input).await.map(|()| Fed::Detached),
                },
                () = change(&mut self.resized) => self.tell_size().await?,
                piece = next(&mut stdin) => match (piece, &mut self.matcher) {
                    (Some(Ok(bytes)), None) => self.tell(bytes).await?,
                    (Some(Ok(bytes)), Some(matcher)) => match matcher.push(&bytes) {
                        Typed::Input(bytes) => self.tell(bytes).await?,
                        Typed::Detach(bytes) => {
                            self.tell(bytes).await?;
                            return leave(self.input).await.map(|()| Fed::Detached);
                        }
                    },
                    // A terminal in raw mode has no end of input. Reading from one that is gone fails.
                    (None | Some(Err(_)), Some(_)) => {
                        if self.leave_alone {
                            leave(self.input).await?;
                        }
                        return Ok(Fed::HungUp);
                    }
                    (None, None) => {
                        stdin = None;
                        self.input.send(ProcessInput::End).await?;
                    }
                    (Some(Err(error)), None) => return Ok(Fed::Unreadable(error)),
                },
            }
        }
    }

    /// Detach keys that were held back make a piece longer than it was.
    async fn tell(&mut self, bytes: Vec<u8>) -> Result<(), ClientError> {
        for chunk in bytes.chunks(CHUNK_MAX) {
            self.input.send(ProcessInput::Data(chunk.to_vec())).await?;
        }
        Ok(())
    }

    async fn tell_size(&mut self) -> Result<(), ClientError> {
        if let (Some(told), Some(now)) = (self.size, terminal::size())
            && told != now
        {
            self.size = Some(now);
            self.input.send(ProcessInput::Resize(now)).await?;
        }
        Ok(())
    }
}

/// A terminal that hears the end is not hung up when we go.
async fn leave(mut input: ProcessSender) -> Result<(), ClientError> {
    input.send(ProcessInput::End).await?;
    input.close().await
}

async fn change(resized: &mut Option<Signal>) {
    if let Some(signal) = resized
        && signal.recv().await.is_some()
    {
        return;
    }
    std::future::pending().await
}

async fn next(stdin: &mut Option<mpsc::Receiver<io::Result<Vec<u8>>>>) -> Option<io::Result<Vec<u8>>> {
    match stdin {
        Some(stdin) => stdin.recv().await,
        None => std::future::pending().await,
    }
}
