//! Tells the host that the guest is busy: see [`aegis_proto::activity`].
//!
//! What is looked at is the whole machine's: nothing is subtracted for the harness, whose own work is far below what
//! counts. Interrupts, I/O wait and the kernel's threads between processes are nobody's work. Loopback is left out
//! because the host's own connections end there, and those it counts itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;
use std::time::Duration;

use aegis_link::Carrier;
use aegis_link::frames::write_frame;
use aegis_proto::activity::{Activity, INTERVAL};
use tokio::io::{AsyncReadExt as _, split};
use tokio::time::{MissedTickBehavior, interval};

use crate::sys::Sys;

/// `USER_HZ`: the same on every architecture that we know.
const TICK: Duration = Duration::from_millis(10);
/// State of a connection in `/proc/net/tcp`.
const ESTABLISHED: &str = "01";

/// Serves a stream until it ends. Its beginning is the first look.
pub(crate) async fn serve<S: Carrier>(sys: &dyn Sys, stream: S) {
    let (mut reader, mut writer) = split(stream);
    let report = async {
        let mut ticks = interval(INTERVAL);
        // A machine that was halted for an hour is looked at once.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        let mut before = Counters::read(sys);
        loop {
            ticks.tick().await;
            let now = Counters::read(sys);
            let activity = now.since(&before);
            before = now;
            if activity.counts() && write_frame(&mut writer, &activity.into_frame()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = report => {}
        // The host says nothing: this is the end of the stream.
        _ = reader.read_u8() => {}
    }
}

/// One look. A file that cannot be read counts as nothing: less is known, nothing is invented.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    cpu: Duration,
    net_bytes: u64,
    tcp: u32,
}

impl Counters {
    fn read(sys: &dyn Sys) -> Self {
        let text = |path| {
            let contents = sys.read_file(Path::new(path)).unwrap_or_default();
            String::from_utf8_lossy(&contents).into_owned()
        };
        Self {
            cpu: cpu_time(&text("/proc/stat")),
            net_bytes: net_bytes(&text("/proc/net/dev")),
            tcp: connections(&text("/proc/net/tcp")).saturating_add(connections(&text("/proc/net/tcp6"))),
        }
    }

    fn since(&self, before: &Self) -> Activity {
        let cpu = self.cpu.saturating_sub(before.cpu);
        Activity {
            cpu_ms: u64::try_from(cpu.as_millis()).unwrap_or(u64::MAX),
            // An interface that went away takes its bytes along.
            net_bytes: self.net_bytes.saturating_sub(before.net_bytes),
            tcp: self.tcp,
        }
    }
}

/// CPU time of processes, the kernel's work for them included, from `/proc/stat`.
fn cpu_time(stat: &str) -> Duration {
    let Some(line) = stat.lines().find_map(|line| line.strip_prefix("cpu ")) else { return Duration::ZERO };
    let ticks = line.split_ascii_whitespace().take(3).filter_map(|field| field.parse::<u32>().ok());
    ticks.map(|ticks| TICK * ticks).sum()
}

/// Bytes received and sent by every interface but loopback, from `/proc/net/dev`.
fn net_bytes(dev: &str) -> u64 {
    let of_interface = |line: &str| {
        let (name, fields) = line.split_once(':')?;
        let mut fields = fields.split_ascii_whitespace().map(str::parse::<u64>);
        let received = fields.next()?.ok()?;
        let sent = fields.nth(7)?.ok()?;
        (name.trim() != "lo").then(|| received.saturating_add(sent))
    };
    dev.lines().filter_map(of_interface).fold(0, u64::saturating_add)
}

/// Established connections to elsewhere, from `/proc/net/tcp` or `/proc/net/tcp6`.
fn connections(table: &str) -> u32 {
    let is_elsewhere = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        let loopback = is_loopback(address(local)?) || is_loopback(address(remote)?);
        Some(state == ESTABLISHED && !loopback)
    };
    let count = table.lines().skip(1).filter(|line| is_elsewhere(line) == Some(true)).count();
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// An address such as `0100007F:1F90`: words of 32 bits, each in the byte order of the machine.
fn address(field: &str) -> Option<IpAddr> {
    let (digits, _port) = field.split_once(':')?;
    let word = |index: usize| {
        let digits = digits.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    match digits.len() {
        8 => Some(Ipv4Addr::from(word(0)?).into()),
        32 => {
            let mut bytes = [0; 16];
            for (index, chunk) in bytes.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(index)?);
            }
            Some(Ipv6Addr::from(bytes).into())
        }
        _ => None,
    }
}

fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn cpu_time_is_that_of_processes() {
        let stat = "cpu  100 20 3 99999 500 60 70 0 0 0\ncpu0 1 1 1 1 1 1 1 0 0 0\nintr 5\n";
        assert_eq!(cpu_time(stat), Duration::from_millis(1230));
        assert_eq!(cpu_time("cpu0 1 1 1\n"), Duration::ZERO);
    }

    #[test]
    fn loopback_traffic_is_nobodys_business() {
        let dev = "Inter-|   Receive                                                |  Transmit\n \
             face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs\n    \
             lo: 5000 10 0 0 0 0 0 0 5000 10 0 0 0 0 0 0\n  \
             eth0:1000 10 0 0 0 0 0 0 200 10 0 0 0 0 0 0\n  \
             eth1: 30 10 0 0 0 0 0 0 4 10 0 0 0 0 0 0\n";
        assert_eq!(net_bytes(dev), 1234);
    }

    // Words are in the machine's byte order; these were written down on little-endian ones.
    #[cfg(target_endian = "little")]
    #[test]
    fn connections_count_when_established_and_with_elsewhere() {
        let v4 = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n   \
             0: 027FA8C0:C350 08080808:01BB 01 00000000:00000000 00:00000000 00000000 0 0 1\n   \
             1: 027FA8C0:C351 08080808:01BB 06 00000000:00000000 00:00000000 00000000 0 0 2\n   \
             2: 0100007F:1F90 0100007F:C352 01 00000000:00000000 00:00000000 00000000 0 0 3\n   \
             3: 0200007F:1F90 0200007F:C352 01 00000000:00000000 00:00000000 00000000 0 0 3\n   \
             4: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4\n";
        assert_eq!(connections(v4), 1);
        let v6 = "  sl  local_address                         remote_address                        st\n   \
             0: 00000000000000000000000001000000:1F90 00000000000000000000000001000000:C000 01 0:0\n   \
             1: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000100007F:C000 01 0:0\n   \
             2: 0000000000000000FFFF0000027FA8C0:1F90 0000000000000000FFFF000008080808:C000 01 0:0\n   \
             3: B80D0120000000000000000001000000:1F90 B80D0120000000000000000002000000:C000 01 0:0\n";
        assert_eq!(connections(v6), 2);
        assert_eq!(address("B80D0120000000000000000001000000:1F90").unwrap().to_string(), "2001:db8::1");
    }

    #[test]
    fn nonsense_counts_as_nothing() {
        for text in
            ["", "cpu ", "cpu x y z\n", ":\n:\n", "lo\neth0: 5\n", "h\n 0: zz:1 zz:1 01\n", "h\n é: é é 01"]
        {
            assert_eq!(
                (cpu_time(text), net_bytes(text), connections(text)),
                (Duration::ZERO, 0, 0),
                "{text:?}"
            );
        }
    }

    #[test]
    fn this_machines_own_files_are_understood() {
        let read = |path| std::fs::read_to_string(path).unwrap();
        assert!(cpu_time(&read("/proc/stat")) > Duration::ZERO);
        net_bytes(&read("/proc/net/dev"));
        connections(&read("/proc/net/tcp"));
    }
}
