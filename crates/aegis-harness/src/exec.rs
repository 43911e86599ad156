//! One process on one stream: see [`aegis_proto::exec`].
//!
//! The stream's flow control reaches the process through its pipes or its terminal. A stream that breaks does not end a
//! process with pipes: its output is then read and thrown away. A terminal is hung up.

use std::sync::Arc;

use aegis_link::Carrier;
use aegis_link::frames::{FrameReader, write_frame};
use aegis_proto::control::{StartFailure, StartFailureKind, Started};
use aegis_proto::exec::{ExecEvent, ExecRequest, Start};
use aegis_proto::logs::OutputStream;
use aegis_types::ProcessInput;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tracing::debug;

use crate::harness::Core;
use crate::input::Terminal;
use crate::output::{Output, OutputEvent};
use crate::sys::LaunchStreams;
use crate::{attach, environment, launch, reaper, user};

/// One yamux message carries 16 KiB; two keep the pipe busy without much memory.
const READ_BYTES: usize = 32 * 1024;

/// Serves a stream from its first frame to the end of the process.
pub(crate) async fn serve<S: Carrier>(core: Arc<Core>, stream: S) {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut frames = FrameReader::new(reader);
    let start = match frames.next().await {
        Ok(Some(frame)) => match ExecRequest::from_frame(frame) {
            Ok(ExecRequest::Start(start)) => start,
            Ok(ExecRequest::Attach(request)) => return attach::serve(&core, request, frames, writer).await,
            Ok(_) | Err(_) => return debug!("an exec stream did not begin with a start request"),
        },
        Ok(None) => return,
        Err(error) => return debug!("an exec stream broke: {error}"),
    };
    match launch_process(&core, &start).await {
        Ok(started) => {
            let _delivery = core.deliver();
            attend(&core, started, start.tty.is_some(), frames, writer).await;
        }
        Err(failure) => refuse(&mut writer, failure).await,
    }
}

pub(crate) async fn refuse<W: AsyncWrite + Unpin>(writer: &mut W, failure: StartFailure) {
    // Whoever went away does not want to know.
    let _ = write_frame(writer, &ExecEvent::Refused(failure).into_frame()).await;
    let _ = writer.shutdown().await;
}

async fn launch_process(core: &Arc<Core>, start: &Start) -> Result<reaper::Started, StartFailure> {
    core.ready_to_start()
        .await
        .map_err(|message| StartFailure { kind: StartFailureKind::Resources, message })?;
    let (core, start) = (Arc::clone(core), start.clone());
    let launched = tokio::task::spawn_blocking(move || {
        let Start { process, stdin, tty } = &start;
        let (mut base, own_user) = (core.primary.environment(), core.primary.user());
        let mut credentials = None;
        if let Some(name) = process.user.as_ref().or(own_user.as_ref()) {
            let user = user::find(&*core.sys, name)?;
            // The primary's own user may have been given another home.
            if own_user.as_ref() != Some(name) {
                base = environment::at_home(base, &user.home);
            }
            credentials = Some(user.credentials);
        }
        let environment = environment::overlay(&base, &process.env);
        let streams = tty.map_or(LaunchStreams::Pipes { stdin: *stdin }, LaunchStreams::Terminal);
        let launch = launch::prepare(process, &environment, streams, credentials)?;
        let started = core.reaper.start(&launch);
        started.map_err(|error| launch::exec_failure(&launch, &process.command[0], error))
    });
    let failed = |error| StartFailure {
        kind: StartFailureKind::Resources,
        message: format!("cannot start it: {error}"),
    };
    launched.await.map_err(failed)?
}

async fn attend<R, W>(
    core: &Core,
    started: reaper::Started,
    has_terminal: bool,
    frames: FrameReader<R>,
    mut writer: W,
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let reaper::Started { pid, input, output } = started;
    let event = ExecEvent::Started(Started { pid });
    let listening = write_frame(&mut writer, &event.into_frame()).await.is_ok();
    let (writing, pieces, terminal) = input.split();
    let output = send_output(output, &mut writer, listening);
    let input = async {
        tokio::join!(receive_input(core, pid, Some(pieces), terminal.as_ref(), frames, || {}), writing);
    };
    tokio::pin!(output, input);
    let gone = tokio::select! {
        () = &mut output => false,
        () = &mut input => true,
    };
    // The host went away. Nobody sits at a terminal then: it is hung up, as all our copies of it are closed now. Any other
    // process goes on.
    if gone && !has_terminal {
        output.await;
    }
}

async fn send_output<W: AsyncWrite + Unpin>(mut output: Output, writer: &mut W, mut listening: bool) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let (event, last) = match output.next(&mut buffer).await {
            OutputEvent::Data(stream, count) => (output_event(stream, buffer[..count].to_vec()), false),
            OutputEvent::Ended(status) => (ExecEvent::Exit(status), true),
        };
        if listening {
            listening = write_frame(writer, &event.into_frame()).await.is_ok();
        }
        if last {
            let _ = writer.shutdown().await;
            return;
        }
    }
}

pub(crate) fn output_event(stream: OutputStream, bytes: Vec<u8>) -> ExecEvent {
    match stream {
        OutputStream::Stdout => ExecEvent::Stdout(bytes),
        OutputStream::Stderr => ExecEvent::Stderr(bytes),
    }
}

/// Passes on what the host says until it goes away. When the host ends the input, `pieces` is dropped and `ended` is called.
pub(crate) async fn receive_input<R: AsyncRead + Unpin>(
    core: &Core,
    pid: u32,
    mut pieces: Option<mpsc::Sender<Vec<u8>>>,
    terminal: Option<&Terminal>,
    mut frames: FrameReader<R>,
    ended: impl Fn(),
) {
    loop {
        let request = match frames.next().await {
            Ok(Some(frame)) => ExecRequest::from_frame(frame),
            Ok(None) => return,
            Err(error) => return debug!("the stream of process {pid} broke: {error}"),
        };
        let Ok(ExecRequest::Input(input)) = request else {
            return debug!("bad request on the stream of process {pid}");
        };
        match input {
            ProcessInput::Data(bytes) => {
                // A process that closed its input, or never had one, misses nothing.
                if let Some(pieces) = &pieces {
                    let _ = pieces.send(bytes).await;
                }
            }
            ProcessInput::End => {
                pieces = None;
                ended();
            }
            ProcessInput::Signal(signal) => {
                if let Err(error) = core.sys.signal_group(pid, signal) {
                    debug!("cannot send signal {signal} to {pid}: {error}");
                }
            }
            ProcessInput::Resize(size) => {
                if let Some(Err(error)) = terminal.map(|terminal| terminal.resize(size)) {
                    debug!("cannot resize the terminal of {pid}: {error}");
                }
            }
        }
    }
}
