//! What the proxy is told, as plain types that a section of the TOML file can hold.

mod network;
pub(crate) mod time;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

pub use network::Network;

/// Everything. Each key is optional; what is served without `origins` is what the guard answers by itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Settings {
    /// Where browsers connect: TLS, HTTP/2 and HTTP/1.1.
    pub listen: Vec<SocketAddr>,
    /// Plain HTTP/1.1, for what ends TLS before us on the same host or wire. Never for browsers: cookies of a session
    /// would pass in the clear.
    pub plain: Vec<SocketAddr>,
    /// Plain HTTP/1.1 where every request is answered with its address under https.
    pub redirect: Vec<SocketAddr>,
    /// The port in the addresses that `redirect` answers with: where browsers reach `listen`.
    pub public_port: u16,
    /// The first one serves clients that name no host, or one that no certificate has.
    pub certificates: Vec<Certificate>,
    /// Peers whose `Forwarded` and `X-Forwarded-*` are believed and passed on, and whose connections are never closed
    /// for one session's sake: `192.0.2.7`, `10.0.0.0/8`, `2001:db8::/32`.
    pub trusted_proxies: Vec<Network>,
    /// Header fields that no client may send, since origins believe what they say: `x-remote-user`, or how several names
    /// begin, `x-remote-*`. It takes the place of a list of the common ones.
    pub never_from_clients: Vec<String>,
    /// Where it is written down who has which socket, for the daemon to read when the gateway does not answer: a file in
    /// a folder in memory that nobody else can write to, like `/run/enforcer-gateway/sockets`. Unset: nowhere.
    pub socket_table: Option<PathBuf>,
    pub origins: Vec<Origin>,
    pub limits: Limits,
    pub times: Times,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: Vec::new(),
            plain: Vec::new(),
            redirect: Vec::new(),
            public_port: 443,
            certificates: Vec::new(),
            trusted_proxies: Vec::new(),
            never_from_clients: NEVER_FROM_CLIENTS.map(str::to_owned).to_vec(),
            socket_table: None,
            origins: Vec::new(),
            limits: Limits::default(),
            times: Times::default(),
        }
    }
}

/// By which gateways and proxies tell applications who somebody is, and (`X-Original-URL`) what he asked for.
const NEVER_FROM_CLIENTS: [&str; 14] = [
    "remote-user",
    "remote-groups",
    "remote-name",
    "remote-email",
    "x-remote-*",
    "x-user",
    "x-authenticated-*",
    "x-auth-request-*",
    "x-webauth-*",
    "x-client-cert*",
    "x-ssl-client-*",
    "ssl-client-*",
    "x-original-*",
    "x-rewrite-url",
];

/// A certificate with its key, both PEM.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Certificate {
    /// The certificate, and then those that lead to a root.
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// An application behind the gateway.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Origin {
    /// What the guard knows it by, and what the log says: unique.
    pub name: String,
    /// The host that browsers ask for, without a port: `app.example.com`, or `*.example.com` for every name one label
    /// longer.
    pub host: String,
    /// The paths that it serves below that host. `/app` matches `/app` and `/app/x`, never `/apple`.
    #[serde(default = "slash")]
    pub path: String,
    /// Where it is: `http://127.0.0.1:8000`, `https://app.internal`. No path.
    pub address: String,
    /// PEM of the roots that its certificate must lead to; for `https`.
    #[serde(default)]
    pub ca: Option<PathBuf>,
    /// The name that its certificate must be for, where it is not the host of `address`.
    #[serde(default)]
    pub server_name: Option<String>,
    /// The `Host` that it is told, where it is not what the browser asked for.
    #[serde(default)]
    pub host_header: Option<String>,
    /// The longest body of a request, in bytes.
    #[serde(default = "ten_mebibytes")]
    pub max_body: u64,
    /// What a connection may be upgraded to; any other wish is not passed on.
    #[serde(default = "websocket")]
    pub upgrades: Vec<String>,
}

fn slash() -> String {
    "/".into()
}

fn ten_mebibytes() -> u64 {
    10 << 20
}

fn websocket() -> Vec<String> {
    vec!["websocket".into()]
}

/// How much of everything there may be.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Limits {
    /// Connections of clients, in all.
    pub connections: usize,
    /// Of one address, or of one /64 of IPv6. Peers in `trusted-proxies` are not counted.
    pub connections_of_address: usize,
    /// Requests on their way, in all; a WebSocket is one as long as it is open. Who comes beyond that is told 503. Each
    /// takes up to 384 KiB: 256 that its client may send ahead, 64 read from the origin, 64 on the way to the client.
    pub requests: usize,
    /// From one address, or from one /64 of IPv6. Those of peers in `trusted-proxies` are counted in all alone.
    pub requests_of_address: usize,
    /// Bytes of a request's head, and of an answer's. At least 8,192.
    pub head_bytes: usize,
    /// Header fields in it.
    pub head_fields: usize,
    /// Requests at once on one HTTP/2 connection.
    pub streams: u32,
    /// Requests that a client gave up before they were answered, on one HTTP/2 connection, within ten seconds: one more
    /// and it is closed (rapid reset).
    pub abandoned: u32,
    /// Connections to one origin that wait for their next request, for each thread.
    pub idle_upstream: usize,
    /// Sessions whose end is remembered, so that nothing that was admitted before can begin after it.
    pub ended_sessions: usize,
    /// Sessions that are told apart on one connection; with more of them it is not closed for any.
    pub sessions_of_connection: usize,
    /// Sockets that have room in the table of sockets, 80 bytes each.
    pub table_slots: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            connections_of_address: 1_000,
            requests: 10_000,
            requests_of_address: 1_000,
            head_bytes: 32 << 10,
            head_fields: 100,
            streams: 128,
            abandoned: 200,
            idle_upstream: 128,
            ended_sessions: 65_536,
            sessions_of_connection: 32,
            table_slots: 65_536,
        }
    }
}

/// How long everything may take. As systemd writes it, and with milliseconds: `500ms`, `90s`, `15min`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct Times {
    #[serde(deserialize_with = "time::deserialize")]
    pub handshake: Duration,
    /// From the first byte of a request's head to its last.
    #[serde(deserialize_with = "time::deserialize")]
    pub head: Duration,
    /// Between two requests on a connection.
    #[serde(deserialize_with = "time::deserialize")]
    pub keep_alive: Duration,
    /// Between two pieces of a request's body.
    #[serde(deserialize_with = "time::deserialize")]
    pub body: Duration,
    /// How long a client may take nothing of what is ready for it.
    #[serde(deserialize_with = "time::deserialize")]
    pub write: Duration,
    /// To connect to an origin, with its TLS.
    #[serde(deserialize_with = "time::deserialize")]
    pub connect: Duration,
    /// From a whole request to the head of its answer.
    #[serde(deserialize_with = "time::deserialize")]
    pub answer: Duration,
    /// Between two pieces of an answer's body: long, since server-sent events are silent for minutes.
    #[serde(deserialize_with = "time::deserialize")]
    pub answer_body: Duration,
    /// Without a byte either way on an upgraded connection.
    #[serde(deserialize_with = "time::deserialize")]
    pub tunnel: Duration,
    /// How long a connection to an origin may wait for its next request: shorter than the origin's own time.
    #[serde(deserialize_with = "time::deserialize")]
    pub idle_upstream: Duration,
    /// Until the files of certificates are looked at again.
    #[serde(deserialize_with = "time::deserialize")]
    pub reload: Duration,
    /// How long the end of a session waits until all of its requests are gone.
    #[serde(deserialize_with = "time::deserialize")]
    pub end: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(15),
            keep_alive: Duration::from_secs(75),
            body: Duration::from_secs(60),
            write: Duration::from_secs(60),
            connect: Duration::from_secs(10),
            answer: Duration::from_secs(60),
            answer_body: Duration::from_secs(600),
            tunnel: Duration::from_secs(3600),
            idle_upstream: Duration::from_secs(30),
            reload: Duration::from_secs(10),
            end: Duration::from_secs(2),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_of_the_file_is_read() {
        let settings: Settings = toml::from_str(
            r#"
            listen = ["0.0.0.0:443", "[::]:443"]
            redirect = ["0.0.0.0:80"]
            trusted-proxies = ["10.0.0.0/8", "2001:db8::1"]
            [[certificates]]
            chain = "/etc/enforcer/web.pem"
            key = "/etc/enforcer/web.key"
            [[origins]]
            name = "wiki"
            host = "wiki.example.com"
            address = "http://127.0.0.1:8000"
            [limits]
            streams = 16
            [times]
            head = "500ms"
            tunnel = "2h"
            "#,
        )
        .unwrap();
        assert_eq!(settings.listen.len(), 2);
        assert_eq!(settings.origins[0].path, "/");
        assert_eq!(settings.origins[0].upgrades, ["websocket"]);
        assert_eq!(settings.limits.streams, 16);
        assert_eq!(settings.limits.head_fields, Limits::default().head_fields);
        assert_eq!(settings.times.head, Duration::from_millis(500));
        assert_eq!(settings.times.tunnel, Duration::from_secs(7200));
    }

    #[test]
    fn an_unknown_key_is_refused() {
        let error = toml::from_str::<Settings>("lisen = []").unwrap_err().to_string();
        assert!(error.contains("lisen"), "{error}");
        for bad in
            ["[times]\nhead = \"soon\"", "[times]\nhead = \"0s\"", "trusted-proxies = [\"10.0.0.0/33\"]"]
        {
            assert!(toml::from_str::<Settings>(bad).is_err(), "{bad}");
        }
    }
}
