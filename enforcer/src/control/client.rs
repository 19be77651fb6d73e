//! The client's end: a unix socket as a gRPC channel.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use super::api;

pub type ControlClient = api::control_client::ControlClient<Channel>;
pub type WebClient = api::web_client::WebClient<Channel>;
pub type GateClient = api::gate_client::GateClient<Channel>;

async fn channel(socket: &Path, endpoint: Endpoint) -> std::io::Result<Channel> {
    // connected here first, so that the error is the system's own and not a transport's
    let mut first = Some(UnixStream::connect(socket).await?);
    let path = PathBuf::from(socket);
    let connector = tower::service_fn(move |_: Uri| {
        let (first, path) = (first.take(), path.clone());
        async move {
            let stream = match first {
                Some(stream) => stream,
                None => UnixStream::connect(path).await?,
            };
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        }
    });
    endpoint.connect_with_connector(connector).await.map_err(std::io::Error::other)
}

fn endpoint() -> Endpoint {
    // the address is never looked up: the connector decides
    Endpoint::from_static("http://enforcer.invalid")
}

/// Lists come in parts; a receipt comes with all the sessions that it tells of, some thousands at the very worst. It is our
/// own daemon that sends it.
const MAX_MESSAGE: usize = 64 * 1_024 * 1_024;

pub async fn connect_control(socket: &Path) -> std::io::Result<ControlClient> {
    Ok(ControlClient::new(channel(socket, endpoint()).await?).max_decoding_message_size(MAX_MESSAGE))
}

pub async fn connect_gate(socket: &Path) -> std::io::Result<GateClient> {
    Ok(GateClient::new(channel(socket, endpoint()).await?))
}

/// How often a daemon from which the gateway hears nothing is asked whether it is there, and how long it has to answer.
const ASKED_EVERY: Duration = Duration::from_secs(5);
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// The web gateway's. A daemon that hangs, with its sockets open, ends no session: neither one that is revoked nor one that
/// was idle for too long. To the gateway it is gone.
pub async fn connect_web(socket: &Path) -> std::io::Result<WebClient> {
    let endpoint = endpoint()
        .http2_keep_alive_interval(ASKED_EVERY)
        .keep_alive_timeout(ANSWERS_WITHIN)
        .keep_alive_while_idle(true);
    Ok(WebClient::new(channel(socket, endpoint).await?))
}
