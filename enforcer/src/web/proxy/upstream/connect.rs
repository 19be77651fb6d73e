//! A fresh connection to an origin.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::listener::HYPERS_FIELDS;
use super::super::origin::{Origin, Place};
use super::super::register::Flight;
use super::super::settings::Limits;
use super::super::socket::Io;
use super::{Driver, Failure, Line, Stream, unless_ended};

/// Connects on behalf of a request, whose socket it is from the first moment on.
pub(in super::super) async fn connect(
    origin: &Origin,
    flight: &Flight,
    limits: &Limits,
    time: Duration,
) -> Result<Line, Failure> {
    match unless_ended(flight, timeout(time, open(origin, flight, limits))).await {
        None => Err(Failure::Ended),
        Some(Err(_)) => Err(Failure::TimedOut),
        Some(Ok(done)) => done,
    }
}

async fn open(origin: &Origin, flight: &Flight, limits: &Limits) -> Result<Line, Failure> {
    let broken = |what: &str, error: &dyn std::fmt::Display| Failure::Broken(format!("{what}: {error}"));
    let stream = match origin.place() {
        Place::Address(address) => TcpStream::connect(address).await,
        Place::Name(name, port) => TcpStream::connect((name.as_str(), *port)).await,
    };
    let io: io::Result<Io> = stream.and_then(Io::new);
    let io = io.map_err(|error| broken("it cannot be reached", &error))?;
    let wire = Arc::clone(io.wire());
    if !flight.attach(&wire) {
        return Err(Failure::Ended);
    }
    let stream = match origin.tls() {
        None => Stream::Plain(io),
        Some((connector, name)) => {
            let stream = connector.connect(name.clone(), io).await;
            Stream::Tls(Box::new(stream.map_err(|error| broken("TLS with it fails", &error))?))
        }
    };
    let mut builder = http1::Builder::new();
    if limits.head_fields != HYPERS_FIELDS {
        builder.max_headers(limits.head_fields);
    }
    let (sender, connection) = builder
        .max_header_size(limits.head_bytes)
        .max_buf_size(limits.head_bytes.max(64 << 10))
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| broken("HTTP with it fails", &error))?;
    let driver = Driver::Inline(Box::new(connection));
    Ok(Line { sender, driver, wire, idle: Instant::now(), used: false })
}
