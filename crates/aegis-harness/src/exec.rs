//! One process on one stream: see [`aegis_proto::exec`].
//!
//! The stream's flow control reaches the process through its pipes. A stream that breaks does not end the
//! process: its output is then read and thrown away.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use aegis_link::Carrier;
use aegis_link::frames::{FrameReader, write_frame};
use aegis_proto::control::{StartFailure, StartFailureKind, Started};
use aegis_proto::exec::{ExecEvent, ExecRequest, Start};
use aegis_proto::logs::OutputStream;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe::Sender;
use tokio::sync::mpsc;
use tracing::debug;

use crate::harness::Core;
use crate::output::{Output, OutputEvent};
use crate::{environment, launch, reaper};

/// One yamux message carries 16 KiB; two keep the pipe busy without much memory.
const READ_BYTES: usize = 32 * 1024;
/// Input that the process has not read yet, in frames. Signals behind more than this wait for it.
const INPUT_QUEUE: usize = 16;

/// Serves a stream from its first frame to the end of the process.
pub(crate) async fn serve<S: Carrier>(core: Arc<Core>, stream: S) {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut frames = FrameReader::new(reader);
    let start = match frames.next().await {
        Ok(Some(frame)) => match ExecRequest::from_frame(frame) {
            Ok(ExecRequest::Start(start)) => start,
            Ok(_) | Err(_) => return debug!("an exec stream did not begin with a start request"),
        },
        Ok(None) => return,
        Err(error) => return debug!("an exec stream broke: {error}"),
    };
    match launch_process(&core, &start).await {
        Ok(started) => {
            let _delivery = core.deliver();
            attend(&core, started, frames, writer).await;
        }
        Err(failure) => {
            // Whoever went away does not want to know.
            let _ = write_frame(&mut writer, &ExecEvent::Refused(failure).into_frame()).await;
            let _ = writer.shutdown().await;
        }
    }
}

async fn launch_process(core: &Arc<Core>, start: &Start) -> Result<reaper::Started, StartFailure> {
    core.ready_to_start()
        .await
        .map_err(|message| StartFailure { kind: StartFailureKind::Resources, message })?;
    let (core, start) = (Arc::clone(core), start.clone());
    let launched = tokio::task::spawn_blocking(move || {
        let environment = environment::overlay(&core.primary.environment(), &start.process.env);
        let launch = launch::prepare(&start.process, &environment, start.stdin)?;
        let started = core.reaper.start(&launch);
        started.map_err(|error| launch::exec_failure(&launch, &start.process.command[0], error))
    });
    let failed = |error| StartFailure {
        kind: StartFailureKind::Resources,
        message: format!("cannot start it: {error}"),
    };
    launched.await.map_err(failed)?
}

async fn attend<R, W>(core: &Core, started: reaper::Started, frames: FrameReader<R>, mut writer: W)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let event = ExecEvent::Started(Started { pid: started.pid });
    let listening = write_frame(&mut writer, &event.into_frame()).await.is_ok();
    let output = send_output(started.output, &mut writer, listening);
    let input = receive_input(core, started.pid, started.stdin, frames);
    tokio::pin!(output, input);
    tokio::select! {
        () = &mut output => {}
        // The host said all it wanted, or went away; the process goes on.
        () = &mut input => output.await,
    }
}

async fn send_output<W: AsyncWrite + Unpin>(mut output: Output, writer: &mut W, mut listening: bool) {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        let (event, last) = match output.next(&mut buffer).await {
            OutputEvent::Data(OutputStream::Stdout, count) => {
                (ExecEvent::Stdout(buffer[..count].to_vec()), false)
            }
            OutputEvent::Data(OutputStream::Stderr, count) => {
                (ExecEvent::Stderr(buffer[..count].to_vec()), false)
            }
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

async fn receive_input<R: AsyncRead + Unpin>(
    core: &Core,
    pid: u32,
    stdin: Option<OwnedFd>,
    mut frames: FrameReader<R>,
) {
    let (chunks, queue) = mpsc::channel(INPUT_QUEUE);
    let receive = async move {
        let mut chunks = Some(chunks);
        loop {
            let request = match frames.next().await {
                Ok(Some(frame)) => ExecRequest::from_frame(frame),
                Ok(None) => return,
                Err(error) => return debug!("the stream of process {pid} broke: {error}"),
            };
            match request {
                Ok(ExecRequest::Stdin(bytes)) => {
                    // A process that closed its input, or never had one, misses nothing.
                    if let Some(chunks) = &chunks {
                        let _ = chunks.send(bytes).await;
                    }
                }
                Ok(ExecRequest::Eof) => chunks = None,
                Ok(ExecRequest::Signal(signal)) => {
                    if let Err(error) = core.sys.signal_group(pid, signal) {
                        debug!("cannot send signal {signal} to {pid}: {error}");
                    }
                }
                Ok(ExecRequest::Start(_)) | Err(_) => {
                    return debug!("bad request on the stream of process {pid}");
                }
            }
        }
    };
    tokio::join!(receive, write_input(stdin, queue));
}

async fn write_input(stdin: Option<OwnedFd>, mut queue: mpsc::Receiver<Vec<u8>>) {
    let Some(mut pipe) = stdin.and_then(|stdin| Sender::from_owned_fd(stdin).ok()) else { return };
    while let Some(bytes) = queue.recv().await {
        if pipe.write_all(&bytes).await.is_err() {
            return;
        }
    }
}
