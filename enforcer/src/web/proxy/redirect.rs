//! Plain HTTP, where nothing is served: every request is sent on to its own address under https.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;

use hyper::body::{Bytes, Incoming};
use hyper::header::{HeaderValue, LOCATION};
use hyper::http::{Request, Response, StatusCode};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;

use super::body::ResponseBody;
use super::head::{Refusal, target};
use super::listener::{builder, converse, linger};
use super::page::page;
use super::service::Held;
use super::settings::Limits;
use super::socket::Io;
use super::strict::Strict;

/// Speaks with a client until it goes.
pub(super) async fn speak(limits: &Limits, port: u16, held: &Held, io: Io) -> io::Result<()> {
    let connection = held.connection();
    let stream = TokioIo::new(Strict::new(io, Arc::clone(connection)));
    let service = service_fn(|request| {
        let own = connection.own();
        let answer = answer(request, port).unwrap_or_else(Into::into);
        let body = |page| ResponseBody::page(page, Arc::default(), own);
        std::future::ready(Ok::<_, Infallible>(answer.map(body)))
    });
    let mut speaking = builder(limits.head_bytes, limits.head_fields).serve_connection(stream, service);
    let done = converse(connection, Pin::new(&mut speaking), |speaking| speaking.graceful_shutdown()).await;
    if done.is_some() {
        linger(speaking.into_parts().io.into_inner().into_inner()).await;
    }
    done.unwrap_or(Ok(())).map_err(io::Error::other)
}

fn answer(request: Request<Incoming>, port: u16) -> Result<Response<Bytes>, Refusal> {
    let (mut parts, _) = request.into_parts();
    let target = target(&mut parts, false)?;
    let host = target.host();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    let address =
        if port == 443 { format!("https://{host}{path}") } else { format!("https://{host}:{port}{path}") };
    let malformed = |_| Refusal(StatusCode::BAD_REQUEST, "The address is malformed.");
    let location = HeaderValue::from_bytes(address.as_bytes()).map_err(malformed)?;
    // 308: the method stays; browsers remember it, as they should
    let mut response = page(StatusCode::PERMANENT_REDIRECT, "This is served by https alone.");
    response.headers_mut().insert(LOCATION, location);
    Ok(response)
}
