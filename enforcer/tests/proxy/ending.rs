//! The end of a session: everything of it, at once, and nothing of anybody else.

use enforcer::web::proxy::Ended;
use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::http::{Request, Response};

use crate::world::{Gateway, Origin, Raw, get, shake, soon, until};

/// Reads a stream that never ends, piece by piece, until it is broken off.
async fn broken_off(mut answer: Response<Incoming>) {
    soon("the end", async {
        while let Some(frame) = answer.body_mut().frame().await {
            if frame.is_err() {
                return;
            }
        }
        panic!("it came to an end as if it were complete");
    })
    .await;
}

async fn goes_on(answer: &mut Response<Incoming>) {
    for _ in 0..3 {
        soon("a piece", answer.body_mut().frame()).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn r1_r3_on_one_http2_connection_a_session_ends_and_another_goes_on() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut http2 = gateway.http2().await;
    let mine = http2.get("/events", 1).await.unwrap();
    let download = http2.get("/download", 1).await.unwrap();
    let mut theirs = http2.get("/events", 2).await.unwrap();
    goes_on(&mut theirs).await;
    assert_eq!(origin.open(), 3);
    let ended = gateway.end(1).await;
    assert_eq!(ended, Ended { requests: 2, upstream: 2, downstream: 0, left: 0 });
    broken_off(mine).await;
    broken_off(download).await;
    goes_on(&mut theirs).await;
    until("the origin's connections", || origin.open() == 1).await;
    assert!(http2.is_open());
    assert_eq!(http2.get("/", 1).await.unwrap().status(), 401);
    assert_eq!(http2.text("/", 2).await, "hello");
    // the last one that was seen on it takes it along
    assert_eq!(gateway.end(2).await.downstream, 1);
    until("the connection's end", || !http2.is_open()).await;
}

#[tokio::test]
async fn r1_a_download_that_nobody_reads_ends_as_well() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut http2 = gateway.http2().await;
    // its windows are full, and nothing is taken out of them
    let _stalled = http2.get("/download", 1).await.unwrap();
    let mut theirs = http2.get("/events", 2).await.unwrap();
    let mut raw = gateway.raw().await;
    raw.send(get("/download", 1)).await;
    raw.head().await.unwrap();
    until("both downloads", || origin.open() == 3).await;
    let ended = gateway.end(1).await;
    assert_eq!(ended, Ended { requests: 2, upstream: 2, downstream: 1, left: 0 });
    until("the origin's connections", || origin.open() == 1).await;
    goes_on(&mut theirs).await;
    raw.rest().await;
}

/// What of an answer is in the connection's queue and waits for the client's window is thrown away.
#[tokio::test]
async fn r1_r3_nothing_of_an_ended_session_is_written_once_its_client_takes_again() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let stream = shake(gateway.tls(), &gateway.papers, "a.example", &[b"h2"]).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(3);
    let (sender, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    let ask = async |path: &str, session: u8| {
        let request =
            Request::get(format!("https://a.example{path}")).header("x-session", u16::from(session));
        let (answer, _) = sender.clone().send_request(request.body(()).unwrap(), true).unwrap();
        soon("an answer", answer).await.unwrap().into_body()
    };
    // a short answer of which the origin has said everything, a long one, and one without end
    let mut mine = [ask("/", 1).await, ask("/big", 1).await, ask("/download", 1).await];
    let mut theirs = ask("/", 2).await;
    let mut events = ask("/events", 2).await;
    for body in mine.iter_mut().chain([&mut theirs, &mut events]) {
        assert_eq!(soon("what fits", body.data()).await.unwrap().unwrap().len(), 3);
    }
    assert_eq!(gateway.end(1).await, Ended { requests: 3, upstream: 2, downstream: 0, left: 0 });
    for body in &mut mine {
        // an error: its stream was reset before
        let _ = body.flow_control().release_capacity(3);
        let next = soon("the end", body.data()).await;
        assert!(next.as_ref().is_some_and(|next| next.as_ref().is_err_and(h2::Error::is_reset)), "{next:?}");
    }
    // its neighbour takes the rest, and more
    theirs.flow_control().release_capacity(3).unwrap();
    assert_eq!(soon("the rest", theirs.data()).await.unwrap().unwrap(), "lo");
    let end = soon("its end", theirs.data()).await;
    assert!(end.is_none_or(|last| last.unwrap().is_empty()) && theirs.is_end_stream());
    for _ in 0..9 {
        events.flow_control().release_capacity(3).unwrap();
        assert_eq!(soon("a piece", events.data()).await.unwrap().unwrap().len(), 3);
    }
}

/// An answer that is complete, and that hyper has, waits for the socket of a connection that stays.
#[tokio::test]
async fn r1_an_answer_that_a_blocked_connection_holds_takes_it_along() {
    let origin = Origin::new().await;
    let gateway = Gateway::with(&[("a.example", origin.address)], |settings| {
        settings.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    });
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    let stream = socket.connect(gateway.plain()).await.unwrap();
    let mut raw = Raw { stream, left: Vec::new() };
    // as many as fill the buffers between here and there
    let (mut asked, mut full) = (0, 0);
    soon("a full connection", async {
        while full < 5 {
            if gateway.proxy.register().blocked() == 1 {
                full += 1;
            } else {
                full = 0;
                raw.send(get("/medium", 1).repeat(10)).await;
                asked += 10;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
    let ended = gateway.end(1).await;
    assert!(ended.requests > 0 && ended.left == 0, "{ended:?}");
    let said = raw.rest().await;
    assert!(said.len() < asked * (20 << 10), "{} bytes of {asked} answers", said.len());
}

#[tokio::test]
async fn r1_a_request_that_waits_for_its_answer_ends() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut alone = gateway.raw().await;
    alone.send(get("/silent", 1)).await;
    let mut shared = gateway.raw().await;
    assert_eq!(shared.ask(get("/", 2)).await.unwrap().status, 200);
    shared.send(get("/silent", 1)).await;
    let mut http2 = gateway.http2().await;
    assert_eq!(http2.text("/", 2).await, "hello");
    let waits = tokio::spawn({
        let mut http2 = http2.clone();
        async move { http2.get("/silent", 1).await.map(|answer| answer.status()) }
    });
    until("three requests", || origin.seen().iter().filter(|seen| seen.target == "/silent").count() == 3)
        .await;
    let ended = gateway.end(1).await;
    assert_eq!(ended, Ended { requests: 3, upstream: 3, downstream: 1, left: 0 });
    // at most that it has ended
    assert!(!alone.rest().await.starts_with(b"HTTP/1.1 200"));
    // where another session was seen, the request is answered and the connection stays
    assert_eq!(shared.answer().await.unwrap().status, 403);
    assert_eq!(shared.ask(get("/", 2)).await.unwrap().status, 200);
    assert!(soon("its end", waits).await.unwrap().is_err(), "the stream is reset");
    assert_eq!(http2.text("/", 2).await, "hello");
}

#[tokio::test]
async fn r1_an_upload_ends() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    raw.send("POST /mirror HTTP/1.1\r\nHost: a.example\r\nx-session: 1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        .await;
    raw.read_to(b"1\r\na\r\n").await.unwrap();
    assert_eq!(gateway.end(1).await, Ended { requests: 1, upstream: 1, downstream: 1, left: 0 });
    raw.rest().await;
    until("the origin's connection", || origin.open() == 0).await;
}

#[tokio::test]
async fn r2_a_request_that_was_let_in_a_moment_ago_comes_to_nothing() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut shared = gateway.raw().await;
    assert_eq!(shared.ask(get("/", 2)).await.unwrap().status, 200);
    shared.send(get("/hold", 1)).await;
    let held = std::sync::Arc::clone(&gateway.proxy.guard().held);
    soon("the request", held.arrived.acquire()).await.unwrap().forget();
    // the guard has said yes; it only does not answer yet
    assert_eq!(gateway.end(1).await, Ended::default());
    held.go_on.add_permits(1);
    assert_eq!(shared.answer().await.unwrap().status, 403);
    assert!(!origin.seen().iter().any(|seen| seen.target == "/hold"), "nothing reached the origin");
    // its twin, of somebody who lives
    shared.send(get("/hold", 2)).await;
    soon("the request", held.arrived.acquire()).await.unwrap().forget();
    held.go_on.add_permits(1);
    assert_eq!(shared.answer().await.unwrap().status, 200);
}

#[tokio::test]
async fn r2_r3_an_end_in_the_middle_of_many_beginnings_leaves_none() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut stranger = gateway.http2().await;
    let mut theirs = stranger.get("/events", 250).await.unwrap();
    for round in 0..30 {
        let mut http2 = gateway.http2().await;
        assert_eq!(http2.text("/", 251).await, "hello");
        let many: Vec<_> = (0..16)
            .map(|number| {
                let (mut http2, address) = (http2.clone(), gateway.plain());
                tokio::spawn(async move {
                    if number % 2 == 0 {
                        let _kept = http2.get("/events", round).await;
                        std::future::pending::<()>().await;
                    }
                    let mut raw = Raw::connect(address).await;
                    raw.send(get("/events", round)).await;
                    raw.rest().await;
                })
            })
            .collect();
        for _ in 0..usize::from(round) * 4 {
            tokio::task::yield_now().await;
        }
        // the stranger's, those that wait for their next request, and those of this session
        let ended = gateway.end(round).await;
        assert_eq!(ended.left, 0, "round {round}: {ended:?}");
        let key = enforcer::web::proxy::SessionKey([round; 16]);
        assert_eq!(gateway.proxy.register().flights_of(key), 0);
        goes_on(&mut theirs).await;
        for one in many {
            one.abort();
        }
    }
    let events = || origin.seen().iter().filter(|seen| seen.target == "/events").count();
    let before = events();
    assert_eq!(stranger.text("/", 250).await, "hello");
    assert_eq!(events(), before, "nothing begins after its end");
}

#[tokio::test]
async fn r2_a_connection_to_an_origin_that_was_ended_serves_nobody() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut http2 = gateway.http2().await;
    let events = http2.get("/events", 1).await.unwrap();
    gateway.end(1).await;
    broken_off(events).await;
    assert_eq!(gateway.raw().await.ask(get("/", 2)).await.unwrap().status, 200);
    assert_eq!(origin.connections(), 2);
    // a socket that went back before the end belongs to nobody, and is not reset
    assert_eq!(gateway.raw().await.ask(get("/", 3)).await.unwrap().status, 200);
    assert_eq!(gateway.end(3).await.upstream, 0);
}

#[tokio::test]
async fn r3_a_trusted_proxys_connection_stays() {
    let origin = Origin::new().await;
    let gateway = Gateway::with(&[("a.example", origin.address)], |settings| {
        settings.trusted_proxies = vec!["127.0.0.1".parse().unwrap()];
    });
    let mut raw = gateway.raw().await;
    assert_eq!(raw.ask(get("/", 1)).await.unwrap().status, 200);
    assert_eq!(gateway.end(1).await.downstream, 0);
    assert_eq!(raw.ask(get("/", 2)).await.unwrap().status, 200);
    let mut http2 = gateway.http2().await;
    let events = http2.get("/events", 2).await.unwrap();
    assert_eq!(gateway.end(2).await, Ended { requests: 1, upstream: 1, downstream: 0, left: 0 });
    broken_off(events).await;
    assert_eq!(http2.text("/", 3).await, "hello");
}

#[tokio::test]
async fn r4_a_new_session_on_a_new_connection_works_at_once() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut old = gateway.raw().await;
    assert_eq!(old.ask(get("/", 1)).await.unwrap().status, 200);
    gateway.end(1).await;
    assert!(old.rest().await.is_empty());
    let mut new = Raw::connect(gateway.plain()).await;
    assert_eq!(new.ask(get("/", 2)).await.unwrap().status, 200);
}

#[tokio::test]
async fn the_table_tells_who_has_which_socket() {
    use enforcer::web::proxy::SessionKey;
    use enforcer::web::proxy::table::{self, Side};

    let origin = Origin::new().await;
    let folder = tempfile::TempDir::new().unwrap();
    let path = folder.path().join("sockets");
    let gateway = Gateway::with(&[("a.example", origin.address)], |settings| {
        settings.socket_table = Some(path.clone());
    });
    let all = || {
        let mut all = table::read(&path).unwrap().entries;
        all.sort_by_key(|entry| (entry.session.0, entry.side != Side::Origin));
        all
    };
    assert_eq!(all(), []);
    let mut http2 = gateway.http2().await;
    let mut events = http2.get("/events", 1).await.unwrap();
    goes_on(&mut events).await;
    assert_eq!(http2.text("/", 2).await, "hello");
    until("the second one's end", || all().len() == 3).await;
    let [upstream, mine, theirs] = all()[..] else { panic!("{:?}", all()) };
    assert_eq!((upstream.session, upstream.side), (SessionKey([1; 16]), Side::Origin));
    assert_eq!(upstream.theirs, origin.address);
    assert_eq!((mine.session, mine.side), (SessionKey([1; 16]), Side::Client { trusted: false }));
    assert_eq!((mine.ours, theirs.session), (gateway.tls(), SessionKey([2; 16])));
    assert_eq!((mine.cookie, mine.theirs), (theirs.cookie, theirs.theirs), "one connection, two sessions");
    assert_ne!(upstream.cookie, mine.cookie);
    gateway.end(1).await;
    assert_eq!(all(), [theirs]);
    gateway.end(2).await;
    assert_eq!(all(), []);
}

#[tokio::test]
async fn r7_nothing_is_left_of_requests_that_are_over() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut http2 = gateway.http2().await;
    for session in 0..20 {
        http2.text("/", session).await;
        let key = enforcer::web::proxy::SessionKey([session; 16]);
        until("its request's end", || gateway.proxy.register().flights_of(key) == 0).await;
    }
}
