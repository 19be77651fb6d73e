//! Who is let in: the one question that the proxy asks, and the one place where answers of origins can be changed.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hyper::body::Bytes;
use hyper::http::{HeaderMap, Response, request, response};

use super::body::{BodyError, RequestBody};
use super::origin::Origin;
use super::register::SessionKey;

/// Decides about each request. The proxy knows nothing of cookies and sessions but what this says.
///
/// It must know of a session's end before [`Proxy::end`](super::Proxy::end) is called for it.
pub trait Guard: Send + Sync + 'static {
    /// What `outgoing` needs to know of an admission.
    type Context: Send + 'static;

    /// Answers a request, or lets it through to an origin. It may change the head: what it leaves there is what the
    /// origin sees. Hop-by-hop fields and [`Asked::reserved`] are gone from it already, `Forwarded` and `X-Forwarded-For`,
    /// `-Proto` and `-Host` come after it.
    fn admit(&self, asked: Asked<'_>) -> impl Future<Output = Admission<Self::Context>> + Send;

    /// Changes the head of an origin's answer before the client sees it, or refuses it: then the client is given `Err`
    /// in its place, and the connection to the origin is closed. Hop-by-hop fields are gone from the head. It is asked
    /// of the consent to a tunnel too, before anything passes through that; over HTTP/2 its status is 200 (RFC 8441),
    /// otherwise 101. The end of the session ends the wait for it.
    fn outgoing(
        &self,
        context: &mut Self::Context,
        origin: &Origin,
        head: &mut response::Parts,
    ) -> impl Future<Output = Result<(), Response<Bytes>>> + Send;
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Admission<C> {
    /// The gateway answers by itself. A success in answer to an extended `CONNECT` would be the consent to speak another
    /// protocol: 403 stands in its place.
    Answer(Response<Bytes>),
    /// It goes to [`Asked::origin`], on behalf of that session; without one it is nobody's, and nothing ends it. Where
    /// there is no origin the answer is 404.
    Forward { session: Option<SessionKey>, context: C },
}

/// From where a request came.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    /// The other end of the connection.
    pub socket: SocketAddr,
    /// The client's address: that of the socket, or what a trusted proxy says.
    pub client: IpAddr,
    /// Whether the socket is a trusted proxy's.
    pub trusted: bool,
    /// Whether it came by TLS, to us or to the trusted proxy.
    pub https: bool,
}

/// A request before its admission.
#[derive(Debug)]
pub struct Asked<'a> {
    pub head: &'a mut request::Parts,
    /// What the client sent under names that are the gateway's alone (`Settings::never_from_clients`, and
    /// `X-Forwarded-` with anything that is no address, host or scheme). It is in the head no more; where a named peer
    /// may say who somebody is, this is where he has said it.
    pub reserved: &'a HeaderMap,
    /// The host that was asked for, in lower case and without a port.
    pub host: &'a str,
    /// The same with the port that the client has named, unless it is the one that its scheme has anyway.
    pub authority: &'a str,
    pub peer: Peer,
    /// Whom it is for.
    pub origin: Option<&'a Arc<Origin>>,
    pub(super) body: &'a mut RequestBody,
}

impl Asked<'_> {
    /// The whole body, for the gateway's own pages: a form, a notification. A request whose body was read here cannot
    /// be forwarded any more. More than `most` bytes is an error.
    pub async fn body(&mut self, most: u64) -> Result<Bytes, BodyError> {
        self.body.collect(most).await
    }
}
