//! One request: who is it for, may it, what does the origin say.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{CONTENT_LENGTH, HOST, HeaderValue, RETRY_AFTER, TRANSFER_ENCODING, UPGRADE};
use hyper::http::{Extensions, Method, Request, Response, StatusCode, request, response};
use hyper::upgrade::OnUpgrade;
use tracing::warn;

use super::body::{Relay, RequestBody, ResponseBody};
use super::guard::{Admission, Asked, Guard};
use super::head::{self, Client, Target};
use super::origin::Origin;
use super::page::page;
use super::register::{Connection, Fault, Flight, Own, Place, Present, Refused, Registered, STREAM};
use super::tunnel::{self, Tunnel};
use super::upstream::{Failure, Line, Pools, connect, unless_ended};
use super::{Gate, websocket};

const UNASKED: &str = "The application answers what nobody asked.";

/// A client's connection as its requests see it.
pub(super) struct Visit<G> {
    pub(super) gate: Arc<Gate<G>>,
    pub(super) pools: Arc<Pools>,
    pub(super) held: Arc<Held>,
    pub(super) client: Client,
}

/// What is taken as long as a connection, or a tunnel that came out of it, is there.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) present: Present,
    /// After `present`: who waits for a free place finds the register in order.
    pub(super) _place: Place,
}

impl Held {
    pub(super) fn connection(&self) -> &Arc<Connection> {
        self.present.connection()
    }
}

/// A request that its client gives up is counted against its connection.
struct Watch<'a> {
    connection: &'a Connection,
    flight: Arc<Flight>,
    most: u32,
    answered: bool,
}

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if !self.answered && !self.flight.is_ended() && !self.connection.abandoned(self.most) {
            warn!(peer = %self.connection.peer(), "too many requests were given up; the connection is closed");
            self.connection.abort();
        }
    }
}

/// What is asked of an origin.
struct Errand<'a> {
    origin: &'a Arc<Origin>,
    flight: &'a Arc<Flight>,
    /// What the connection is to become.
    upgrade: Option<HeaderValue>,
    on_upgrade: Option<OnUpgrade>,
}

impl<G: Guard> Visit<G> {
    /// Answers a request, whatever comes of it.
    pub(super) async fn serve(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<ResponseBody>, Infallible> {
        let connection = self.held.connection();
        let mut own = Some(connection.own());
        let flight = STREAM.try_with(Arc::clone).unwrap_or_default();
        let is_head = request.method() == Method::HEAD;
        let most = self.gate.limits.abandoned;
        let mut watch = Watch { connection, flight: Arc::clone(&flight), most, answered: false };
        let answer = if own.as_mut().is_some_and(|own| own.enter(&self.gate.register)) {
            self.answer(request, &flight, &mut own).await
        } else {
            Err(too_many())
        };
        watch.answered = true;
        Ok(answer.unwrap_or_else(|mut page| {
            let own = own.take().unwrap_or_else(|| connection.own());
            if is_head {
                // over HTTP/2 hyper would send a body too
                let length = page.body().len();
                page.headers_mut().entry(CONTENT_LENGTH).or_insert(length.into());
                return page.map(|_| ResponseBody::nothing(flight, own));
            }
            page.map(|page| ResponseBody::page(page, flight, own))
        }))
    }

    /// The answer of an origin; an error is one of our own.
    async fn answer(
        &self,
        request: Request<Incoming>,
        flight: &Arc<Flight>,
        own: &mut Option<Own>,
    ) -> Result<Response<ResponseBody>, Response<Bytes>> {
        let gate = &*self.gate;
        let (mut parts, incoming) = request.into_parts();
        let mut extensions = std::mem::replace(&mut parts.extensions, Extensions::new());
        let on_upgrade = extensions.remove::<OnUpgrade>();
        let extended = extensions.remove::<hyper::ext::Protocol>();
        let mut body = RequestBody::new(incoming, Arc::clone(flight), gate.times.body);
        if parts.headers.len() > gate.limits.head_fields {
            return Err(page(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "There are too many header fields.",
            ));
        }
        if extended.is_some() {
            // RFC 8441: to an origin of HTTP/1.1 it is a GET with an upgrade
            parts.method = Method::GET;
        }
        let mut wanted = head::incoming(&mut parts)?;
        let peer = self.client.peer(&parts.headers, &gate.trusted);
        let target = head::target(&mut parts, peer.https)?;
        let origin = gate.origins.find(target.host(), parts.uri.path());
        if let Some(protocol) = &extended {
            wanted.upgrade = HeaderValue::from_str(protocol.as_str()).ok();
        }
        let upgrade = wanted.upgrade.take().filter(|protocol| {
            let protocol = protocol.to_str().unwrap_or_default();
            body.is_empty() && origin.is_some_and(|origin| origin.upgrades_to(protocol))
        });
        if let Some(protocol) = &upgrade {
            websocket::complete(&mut parts.headers, protocol, extended.is_some());
        } else if extended.is_some() {
            return Err(page(StatusCode::NOT_IMPLEMENTED, "That protocol is not spoken here."));
        }
        let reserved = gate.reserved.take(&mut parts.headers);
        let ticket = gate.register.ticket();
        let asked = Asked {
            peer,
            head: &mut parts,
            reserved: &reserved,
            host: target.host(),
            authority: target.authority(),
            origin,
            body: &mut body,
        };
        let (session, mut context) = match gate.guard.admit(asked).await {
            Admission::Answer(answer) => return Err(instead(answer, extended.is_some())),
            Admission::Forward { session, context } => (session, context),
        };
        let Some(origin) = origin else {
            return Err(page(StatusCode::NOT_FOUND, "There is no application here."));
        };
        if body.was_read() {
            warn!(origin = origin.name(), "a request whose body was read by the guard cannot be forwarded");
            return Err(page(StatusCode::INTERNAL_SERVER_ERROR, "The request cannot be forwarded any more."));
        }
        if !body.limit(origin.max_body()) {
            return Err(too_long());
        }
        let connection = self.held.connection();
        let registered = match session {
            Some(session) => match gate.register.register(ticket, session, connection, flight) {
                Ok(registered) => Some(registered),
                Err(refused) => return Err(refused.into()),
            },
            None => None,
        };
        if registered.is_some()
            && let Some(own) = own
        {
            own.claimed();
        }
        self.dress(&mut parts, &body, origin, &target, upgrade.clone(), wanted.trailers);
        let errand = Errand { origin, flight, upgrade, on_upgrade };
        let (line, answer) = match self.ask(&errand, parts, body).await {
            Ok(answered) => answered,
            Err(failure) => return Err(excuse(origin, flight, failure)),
        };
        let (mut head, incoming) = answer.into_parts();
        let switches = head.status == StatusCode::SWITCHING_PROTOCOLS;
        if switches {
            let agreed = errand.agree(&mut head, extended.is_some());
            agreed.map_err(|text| page(StatusCode::BAD_GATEWAY, text))?;
        } else if extended.is_some() && head.status.is_success() {
            return Err(page(StatusCode::BAD_GATEWAY, "The application does not speak that protocol."));
        } else {
            head::answered(&mut head);
        }
        // on every way out of here without them, the socket to the origin and what it may still say are dropped
        match unless_ended(flight, gate.guard.outgoing(&mut context, origin, &mut head)).await {
            Some(Ok(())) => {}
            Some(Err(answer)) => return Err(instead(answer, extended.is_some())),
            None => return Err(ended()),
        }
        if switches {
            let switched = errand.switch(self, line, registered, own, extended.is_some()).await?;
            return Ok(Response::from_parts(head, switched));
        }
        let own = own.take().unwrap_or_else(|| connection.own());
        let body = self.relay(incoming, line, registered, &errand, own).await;
        Ok(Response::from_parts(head, body))
    }

    /// Gives a request's head its last shape.
    fn dress(
        &self,
        parts: &mut request::Parts,
        body: &RequestBody,
        origin: &Origin,
        target: &Target,
        upgrade: Option<HeaderValue>,
        trailers: bool,
    ) {
        head::forward(&mut parts.headers, &self.client, target.authority());
        if let Some(host) = origin.host_header() {
            parts.headers.insert(HOST, host.clone());
        }
        if body.is_empty() && parts.headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
            parts.headers.remove(CONTENT_LENGTH);
        }
        if !body.is_empty() && !parts.headers.contains_key(CONTENT_LENGTH) {
            // hyper by itself takes it that a GET has no body, whatever comes after its head
            parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        head::outgoing(&mut parts.headers, upgrade, trailers);
    }

    /// Asks the origin: over a connection that waits, or over a fresh one. A connection that waits may have been closed
    /// a moment ago: then the request is sent once more, if it surely had no effect (not a byte was sent) or may be
    /// repeated (RFC 9110, 9.2.2, and no body), and nothing was answered.
    async fn ask(
        &self,
        errand: &Errand<'_>,
        parts: request::Parts,
        body: RequestBody,
    ) -> Result<(Line, Response<Incoming>), Failure> {
        let Errand { origin, flight, .. } = *errand;
        let times = &self.gate.times;
        let repeatable = body.is_empty()
            && errand.upgrade.is_none()
            && matches!(
                parts.method,
                Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE
            );
        let mut request = Request::from_parts(parts, body);
        if let Some(mut line) = self.pools.take(origin.index()).await {
            if !flight.attach(line.wire()) {
                return Err(Failure::Ended);
            }
            let again = repeatable.then(|| copy(&request, flight));
            match line.ask(request, flight, times.answer).await {
                Ok(answer) => return Ok((line, answer)),
                Err(Failure::Stale(unsent)) => match unsent.map(|unsent| *unsent).or(again) {
                    Some(again) => request = again,
                    None => return Err(Failure::Broken("it hung up".into())),
                },
                Err(failure) => return Err(failure),
            }
        }
        let mut line = connect(origin, flight, &self.gate.limits, times.connect).await?;
        let answer = line.ask(request, flight, times.answer).await?;
        Ok((line, answer))
    }

    /// Lets the body of an answer through.
    async fn relay(
        &self,
        incoming: Incoming,
        mut line: Line,
        registered: Option<Registered>,
        errand: &Errand<'_>,
        own: Own,
    ) -> ResponseBody {
        let (flight, origin) = (errand.flight, errand.origin.index());
        if incoming.is_end_stream() {
            let mut line = Some(line);
            poll_fn(|cx| {
                if let Some(line) = line.take() {
                    self.pools.put_back(origin, line, flight, cx);
                }
                Poll::Ready(())
            })
            .await;
            return ResponseBody::nothing(Arc::clone(flight), own);
        }
        flight.answering();
        if !flight.is_body_sent() {
            line.drive_apart();
        }
        let pools = Arc::clone(&self.pools);
        let time = self.gate.times.answer_body;
        ResponseBody::relay(
            Relay::new(incoming, line, pools, origin, Arc::clone(flight), registered, time),
            Arc::clone(flight),
            own,
        )
    }
}

impl Errand<'_> {
    /// Gives the origin's consent to another protocol the shape in which the client gets it, if it is to what was asked.
    fn agree(&self, head: &mut response::Parts, extended: bool) -> Result<(), &'static str> {
        let protocol = head.headers.get(UPGRADE).cloned();
        head::answered(head);
        let (Some(asked), Some(protocol)) = (&self.upgrade, protocol) else {
            return Err(UNASKED);
        };
        if !asked.as_bytes().eq_ignore_ascii_case(protocol.as_bytes()) {
            return Err("The application speaks another protocol.");
        }
        if extended {
            head.status = StatusCode::OK;
            websocket::forget(&mut head.headers);
        } else {
            head::outgoing(&mut head.headers, Some(protocol), false);
        }
        Ok(())
    }

    /// Joins the client's connection and the origin's, both of which speak something else from now on.
    async fn switch<G: Guard>(
        self,
        visit: &Visit<G>,
        line: Line,
        registered: Option<Registered>,
        own: &mut Option<Own>,
        extended: bool,
    ) -> Result<ResponseBody, Response<Bytes>> {
        let connection = visit.held.connection();
        let client = self.on_upgrade.ok_or_else(|| page(StatusCode::BAD_GATEWAY, UNASKED))?;
        let Some((origin, early)) = line.switched().await else {
            return Err(page(StatusCode::BAD_GATEWAY, "The application hung up."));
        };
        self.flight.answering();
        if !extended {
            connection.switches();
        }
        let mut own = own.take().unwrap_or_else(|| connection.own());
        let room = own.leave();
        let held = Arc::clone(&visit.held);
        let flight = Arc::clone(self.flight);
        let body = ResponseBody::nothing(Arc::clone(&flight), own);
        tunnel::start(Tunnel {
            client,
            origin,
            early,
            flight,
            registered,
            room,
            held,
            time: visit.gate.times.tunnel,
        });
        Ok(body)
    }
}

fn copy(request: &Request<RequestBody>, flight: &Arc<Flight>) -> Request<RequestBody> {
    let mut copy = Request::new(RequestBody::empty(Arc::clone(flight)));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    copy
}

/// What the guard gives in place of an origin's answer. Where another protocol was asked for, a success would be the
/// consent to speak it.
fn instead(answer: Response<Bytes>, extended: bool) -> Response<Bytes> {
    if extended && answer.status().is_success() {
        return page(StatusCode::FORBIDDEN, "This is not open to you.");
    }
    answer
}

fn too_long() -> Response<Bytes> {
    page(StatusCode::PAYLOAD_TOO_LARGE, "The body of the request is longer than allowed.")
}

impl From<Refused> for Response<Bytes> {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Ended => ended(),
            Refused::TooOld | Refused::Closing => {
                page(StatusCode::SERVICE_UNAVAILABLE, "The request could not be served: try again.")
            }
        }
    }
}

/// Requests take memory, and origins have their own bounds: who comes when all room is taken comes again.
fn too_many() -> Response<Bytes> {
    let mut answer = page(StatusCode::SERVICE_UNAVAILABLE, "There are too many requests at once: try again.");
    answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
    answer
}

fn ended() -> Response<Bytes> {
    page(StatusCode::FORBIDDEN, "This session has ended.")
}

/// What a client is told when an origin gives no answer.
fn excuse(origin: &Origin, flight: &Flight, failure: Failure) -> Response<Bytes> {
    if flight.is_ended() {
        return ended();
    }
    match flight.fault() {
        Fault::TooLong => return too_long(),
        Fault::TooSlow => {
            return page(StatusCode::REQUEST_TIMEOUT, "The body of the request came too slowly.");
        }
        Fault::Broken => return page(StatusCode::BAD_REQUEST, "The body of the request is malformed."),
        Fault::None => {}
    }
    match failure {
        Failure::Ended => ended(),
        Failure::TimedOut => {
            warn!(origin = origin.name(), "the origin does not answer in time");
            page(StatusCode::GATEWAY_TIMEOUT, "The application does not answer in time.")
        }
        Failure::Broken(text) => {
            warn!(origin = origin.name(), "the origin does not answer: {text}");
            page(StatusCode::BAD_GATEWAY, "The application does not answer.")
        }
        Failure::Stale(_) => page(StatusCode::BAD_GATEWAY, "The application does not answer."),
    }
}
