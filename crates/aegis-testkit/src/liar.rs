//! Guests that do not keep to the protocol.

use std::sync::Arc;

use aegis_harness::sys::Sys as _;
use aegis_harness::sys::fake::FakeSys;
use aegis_link::guest::{GuestLink, receive_hello};
use aegis_link::rpc::{self, Handler};
use aegis_link::{Carrier, LinkError, Stream};
use aegis_proto::GENERATION;
use aegis_proto::control::{RUN, SHUTDOWN, STATUS, Started, Status};
use aegis_proto::hello::{Greeting, Hello, Welcome};
use aegis_proto::jsonrpc::RpcError;
use aegis_proto::service::Service;
use async_trait::async_trait;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use crate::Guest;

/// Neither a line of JSON nor the start of a frame that may be.
const GARBAGE: &[u8] = b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\n";
const VERSION: &str = "liar";

/// Serves one session until the link ends.
pub(crate) async fn serve<C: Carrier>(guest: &Guest, sys: &Arc<FakeSys>, mut carrier: C) {
    let Ok(hello) = receive_hello(&mut carrier).await else { return };
    let outcome = match guest {
        Guest::BreaksLink => break_link(carrier, hello).await,
        _ => lie(guest, sys, carrier, hello).await,
    };
    if let Err(error) = outcome {
        tracing::debug!(%error, "the lie is over");
    }
}

fn welcome(hello: Hello) -> Welcome {
    Welcome { generation: GENERATION, nonce: hello.nonce, version: VERSION.to_owned(), boottime_ns: 1 }
}

async fn break_link<C: Carrier>(mut carrier: C, hello: Hello) -> Result<(), LinkError> {
    carrier.write_all(&Greeting::Welcome(welcome(hello)).encode()).await?;
    carrier.write_all(GARBAGE).await?;
    // The link must end by what was said, not because the guest hung up.
    tokio::io::copy(&mut carrier, &mut tokio::io::sink()).await?;
    Ok(())
}

async fn lie<C: Carrier>(
    guest: &Guest,
    sys: &Arc<FakeSys>,
    carrier: C,
    hello: Hello,
) -> Result<(), LinkError> {
    let mut link = GuestLink::welcome(carrier, welcome(hello)).await?;
    let mut streams = JoinSet::new();
    while let Some(incoming) = link.accept().await {
        let (guest, sys) = (guest.clone(), Arc::clone(sys));
        streams.spawn(async move {
            if let Ok(Some((service, stream))) = incoming.accept().await {
                answer(&guest, sys, service, stream).await;
            }
        });
    }
    link.ended().await;
    Ok(())
}

async fn answer(guest: &Guest, sys: Arc<FakeSys>, service: Service, mut stream: Stream) {
    let lies = match service {
        Service::Control => *guest == Guest::BreaksControl,
        Service::Exec | Service::Streams => *guest == Guest::BreaksExec,
        Service::Tcp | Service::Activity | Service::Fuse | Service::Files => false,
        Service::Logs => *guest == Guest::BreaksLogs,
    };
    if service == Service::Control && !lies {
        // However it ends, nobody in here wants to know.
        let _ = rpc::serve(stream, Arc::new(Honest(sys)), None).await;
        return;
    }
    if lies {
        // The request comes first, as for everybody.
        let _ = stream.read_u8().await;
        let _ = stream.write_all(GARBAGE).await;
        let _ = stream.flush().await;
    }
    let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
}

/// The control service of a guest that lies elsewhere.
struct Honest(Arc<FakeSys>);

#[async_trait]
impl Handler for Honest {
    async fn call(&self, method: &str, _: Value) -> Result<Value, RpcError> {
        let value = match method {
            RUN => serde_json::to_value(Started { pid: 2 }),
            STATUS => serde_json::to_value(Status {
                version: VERSION.to_owned(),
                primary_pid: Some(2),
                primary_exit: None,
                secret_files: false,
                streams: false,
            }),
            SHUTDOWN => {
                self.0.power_off();
                Ok(Value::Null)
            }
            _ => Ok(Value::Null),
        };
        Ok(value.expect("plain data serialises"))
    }
}
