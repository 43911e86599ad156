//! Signs of life.

use std::path::Path;

use aegis_harness::sys::Sys as _;
use aegis_harness::sys::fake::FakeSys;
use aegis_link::frames::FrameReader;
use aegis_proto::activity::{Activity, INTERVAL};
use aegis_proto::service::Service;
use tokio::time::advance;

use crate::vm::{Host, Vm, within};

fn stat(ticks: u32) -> Vec<u8> {
    format!("cpu  {ticks} 0 0 1000000 0 0 0 0 0 0\n").into_bytes()
}

#[tokio::test(start_paused = true)]
async fn only_work_since_the_first_look_is_reported() {
    let vm = Vm::on(FakeSys::new().with_file("/proc/stat", &stat(70_000)));
    let (carrier, _) = vm.connect();
    let (host, _) = Host::greet(carrier).await;
    let stream = within(host.link.open(Service::Activity)).await.unwrap();
    let mut frames = FrameReader::new(stream);
    let set = |ticks| vm.sys.write_file(Path::new("/proc/stat"), &stat(ticks)).unwrap();
    // Time stands still while somebody has work to do; a look is over when nobody has.
    let mut next_is_silence = async || {
        let quiet = tokio::time::timeout(INTERVAL * 3, frames.next()).await;
        assert!(quiet.is_err(), "{quiet:?}");
    };
    next_is_silence().await;
    // Less than what counts.
    set(70_004);
    next_is_silence().await;
    set(70_016);
    let frame = within(frames.next()).await.unwrap().unwrap();
    assert_eq!(Activity::from_frame(&frame), Ok(Activity { cpu_ms: 120, net_bytes: 0, tcp: 0 }));
    drop(frames);
    // The link goes on, and with it the machine.
    advance(INTERVAL * 2).await;
    host.status().await;
}
