#![allow(warnings)]
use std::time::{Duration, Instant};
use aegis_link::{host::*, rpc::Client, frames::*};
use aegis_proto::{control::*, exec::*, hello::*, logs::*, service::Service};
use tokio::net::UnixStream;
fn hello() -> Hello {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Hello { generation: 1, nonce: format!("{}", now.as_nanos()), time_unix_ns: now.as_nanos() as u64, seed: "5a".repeat(32), hostname: "web".into(), machine_id: "0123456789abcdef0123456789abcdef".into() }
}
fn sh(s: &str) -> Process { Process { command: vec!["sh".into(), "-c".into(), s.into()], env: [].into(), workdir: None } }
async fn exec(link: &HostLink, p: Process) -> (String, String, String) {
    let mut s = link.open(Service::Exec).await.unwrap();
    write_frame(&mut s, &ExecRequest::Start(Start { process: p, stdin: false }).into_frame()).await.unwrap();
    let mut f = FrameReader::new(s);
    let (mut o, mut e) = (vec![], vec![]);
    loop {
        let Some(x) = f.next().await.unwrap() else { return ("?".into(), "".into(), "eof".into()) };
        match ExecEvent::from_frame(x).unwrap() {
            ExecEvent::Stdout(b) => o.extend(b), ExecEvent::Stderr(b) => e.extend(b),
            ExecEvent::Exit(s) => return (String::from_utf8_lossy(&o).into(), String::from_utf8_lossy(&e).into(), format!("{s:?}")),
            ExecEvent::Refused(f) => return (String::new(), String::new(), format!("{f:?}")),
            _ => {}
        }
    }
}
#[tokio::main(flavor = "current_thread")]
async fn main() {
    let sock = std::env::args().nth(1).unwrap();
    let t = Instant::now();
    let s = loop { match UnixStream::connect(&sock).await { Ok(s) => break s, Err(_) => tokio::time::sleep(Duration::from_millis(5)).await } };
    let (link, w) = tokio::time::timeout(Duration::from_secs(60), greet(s, hello())).await.expect("welcome").unwrap();
    println!("[{:?}] welcome {w:?}", t.elapsed());
    let (c, _n) = Client::new(link.open(Service::Control).await.unwrap());
    let st: Status = c.call(STATUS, &()).await.unwrap();
    println!("[{:?}] status {st:?}", t.elapsed());
    let r: Result<Started, _> = c.call(RUN, &Run { process: sh("echo up; trap 'echo bye; exit 0' TERM; while :; do sleep 1; done") }).await;
    println!("[{:?}] run {r:?}", t.elapsed());
    let (r_, mut wr) = tokio::io::split(link.open(Service::Logs).await.unwrap());
    write_frame(&mut wr, &Subscribe { after_seq: 0 }.into_frame()).await.unwrap();
    let mut logs = FrameReader::new(r_);
    if r.is_ok() {
        println!("[{:?}] log {:?}", t.elapsed(), LogEvent::from_frame(logs.next().await.unwrap().unwrap()));
        for s in ["cat /proc/mounts", "hostname; cat /etc/machine-id /etc/hostname /etc/hosts /etc/resolv.conf; date; uname -r", "ls -la /dev/ | head -60; ls / /aegis /modules 2>&1; cat /proc/sys/kernel/random/entropy_avail",
            "id; env; ls -l /proc/self/fd; cat /proc/self/oom_score_adj /proc/1/oom_score_adj; grep Sig /proc/self/status",
            "ip addr 2>&1 || ifconfig -a; cat /proc/modules; free -m; df -h",
            "python3 -c 'print(40+2)'; python3 -c 'import os;m,s=os.openpty();print(os.ttyname(s))'; ls -l /dev/stdout /dev/fd /dev/ptmx",
            "echo hi > /root/x; (sleep 0.2 &) ; (setsid sh -c 'sleep 0.1; true' &); sleep 0.6; ps -ef 2>/dev/null | grep -v '\\[' || ps | head -20; grep -c Z /proc/*/stat | grep -v ':0' ",
            "cat /proc/1/status | grep -E 'VmRSS|VmHWM|RssAnon|Threads|VmSize'"] {
            let (o, e, x) = exec(&link, sh(s)).await;
            println!("---- {s}\n{o}{e}=> {x}");
        }
        println!("missing: {:?}", exec(&link, Process { command: vec!["nope".into()], env: [].into(), workdir: None }).await);
        let t2 = Instant::now();
        for _ in 0..100 { assert!(exec(&link, Process { command: vec!["true".into()], env: [].into(), workdir: None }).await.2.contains("code: 0")); }
        println!("100 exec true: {:?} each", t2.elapsed() / 100);
        let t2 = Instant::now();
        let (o, _, x) = exec(&link, sh("head -c 20000000 /dev/zero")).await;
        println!("20 MB: {} {x} {:?}", o.len(), t2.elapsed());
        let f = (0..20).map(|i| { let l = link.clone(); async move { exec(&l, sh(&format!("seq 1 1000; exit {i}"))).await } });
        let t2 = Instant::now();
        let mut js = tokio::task::JoinSet::new(); for x in f { js.spawn(x); }
        let all = js.join_all().await; println!("20 parallel {:?} {:?}", t2.elapsed(), all.iter().map(|x| (x.0.len(), x.2.len())).collect::<Vec<_>>()[0]);
    }
    // park
    let t2 = Instant::now();
    println!("park {:?} {:?}", tokio::time::timeout(Duration::from_secs(10), link.park()).await, t2.elapsed());
    drop((link, c, logs, wr));
    // reconnect several times
    let mut last = None;
    for i in 0..10 {
        let t2 = Instant::now();
        let s = loop { match UnixStream::connect(&sock).await { Ok(s) => break s, Err(_) => tokio::time::sleep(Duration::from_millis(5)).await } };
        match tokio::time::timeout(Duration::from_secs(5), greet(s, hello())).await {
            Ok(Ok((l, w))) => { let (c, _) = Client::new(l.open(Service::Control).await.unwrap()); let st: Status = c.call(STATUS, &()).await.unwrap(); println!("reconnect {i} {:?} pid {:?}", t2.elapsed(), st.primary_pid); if i < 9 { drop(c); drop(l); } else { last = Some((l, c)); } }
            Ok(Err(e)) => println!("reconnect {i} ERR {e:?}"), Err(_) => println!("reconnect {i} TIMEOUT"),
        }
    }
    let (l, c) = last.unwrap();
    // raw burst: bulk output and drop in the middle
    let mut s = l.open(Service::Exec).await.unwrap();
    write_frame(&mut s, &ExecRequest::Start(Start { process: sh("head -c 50000000 /dev/zero; echo done > /root/done"), stdin: false }).into_frame()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop((s, l, c));
    let t2 = Instant::now();
    let s = UnixStream::connect(&sock).await.unwrap();
    let r = tokio::time::timeout(Duration::from_secs(10), greet(s, hello())).await;
    println!("after abrupt drop: {} {:?}", matches!(r, Ok(Ok(_))), t2.elapsed());
    let (l, _) = r.unwrap().unwrap();
    println!("done file: {:?}", exec(&l, sh("sleep 2; cat /root/done")).await);
    let (c, _) = Client::new(l.open(Service::Control).await.unwrap());
    let t2 = Instant::now();
    let (r_, mut wr) = tokio::io::split(l.open(Service::Logs).await.unwrap());
    write_frame(&mut wr, &Subscribe { after_seq: 1 }.into_frame()).await.unwrap();
    let mut logs = FrameReader::new(r_);
    let x: Result<(), _> = c.call(SHUTDOWN, &Shutdown { grace_ms: 5000 }).await;
    println!("shutdown {x:?} {:?}", t2.elapsed());
    while let Ok(Some(f)) = logs.next().await { println!("log {:?} {:?}", t2.elapsed(), LogEvent::from_frame(f)); }
    println!("ended {:?} {:?}", l.ended().await, t2.elapsed());
}
