//! What takes too long. The times are short here and told by what happens, never by a clock.

use std::time::Duration;

use enforcer::web::proxy::{Settings, Times};
use hyper::body::Bytes;
use hyper::http::Request;

use crate::world::{Gateway, Origin, get, shake, soon, until};

const SHORT: Duration = Duration::from_millis(100);

async fn with(change: impl FnOnce(&mut Times)) -> (Origin, Gateway) {
    let origin = Origin::new().await;
    let gateway = Gateway::with(&[("a.example", origin.address)], |settings: &mut Settings| {
        change(&mut settings.times);
    });
    (origin, gateway)
}

#[tokio::test]
async fn r7_a_head_that_comes_slowly_is_told_so() {
    let (_origin, gateway) = with(|times| times.head = SHORT).await;
    let mut raw = gateway.raw().await;
    assert_eq!(raw.ask(get("/", 1)).await.unwrap().status, 200);
    raw.send("GET / HTTP/1.1\r\nHost: a").await;
    assert_eq!(raw.answer().await.unwrap().status, 408);
    assert!(raw.rest().await.is_empty());
    // a connection that says nothing has the time between two requests, not that of a head
    let mut idle = gateway.raw().await;
    let mut slow = gateway.raw().await;
    slow.send("GET").await;
    assert_eq!(slow.answer().await.unwrap().status, 408);
    assert_eq!(idle.ask(get("/", 1)).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_head_that_was_sent_ahead_waits_for_its_turn() {
    let (_origin, gateway) = with(|times| times.head = SHORT).await;
    let mut raw = gateway.raw().await;
    raw.send(format!("{}GET / HTTP/1.1\r\nHost: a", get("/events", 1))).await;
    let mut other = gateway.raw().await;
    other.send("GET").await;
    // this one's time is over, and so would the other's be
    assert_eq!(other.answer().await.unwrap().status, 408);
    raw.head().await.unwrap();
    raw.left.clear();
    for _ in 0..100 {
        let end = raw.read_to(b"data: x\n\n").await.unwrap();
        let piece: Vec<u8> = raw.left.drain(..end).collect();
        assert!(!piece.windows(3).any(|bytes| bytes == b"408"), "{}", String::from_utf8_lossy(&piece));
    }
}

#[tokio::test]
async fn r7_a_connection_that_nobody_uses_is_closed() {
    let (_origin, gateway) = with(|times| times.keep_alive = SHORT).await;
    let mut raw = gateway.raw().await;
    assert_eq!(raw.ask(get("/", 1)).await.unwrap().status, 200);
    assert!(raw.rest().await.is_empty());
    let http2 = gateway.http2().await;
    until("the connection's end", || !http2.is_open()).await;
    // one with a request on its way is used
    let mut busy = gateway.raw().await;
    busy.send(get("/events", 1)).await;
    let mut unused = gateway.raw().await;
    assert!(unused.rest().await.is_empty());
    busy.left.clear();
    busy.read_to(b"data: x").await.unwrap();
}

#[tokio::test]
async fn r7_a_body_that_comes_slowly_is_told_so() {
    let (_origin, gateway) = with(|times| times.body = SHORT).await;
    let mut raw = gateway.raw().await;
    let answer =
        raw.ask("POST /sum HTTP/1.1\r\nHost: a.example\r\nContent-Length: 9\r\n\r\nabc").await.unwrap();
    assert_eq!(answer.status, 408);
}

#[tokio::test]
async fn r7_a_body_that_never_comes_is_told_so_with_every_method() {
    let (_origin, gateway) = with(|times| times.body = SHORT).await;
    let (mut sender, _connection) = bare(&gateway, h2::client::Builder::new()).await;
    for method in ["GET", "HEAD", "POST"] {
        let request = Request::builder().method(method).uri("https://a.example/sum").body(()).unwrap();
        // its head does not end it, and nothing else comes
        let (answer, _body) = sender.send_request(request, false).unwrap();
        assert_eq!(soon("an answer", answer).await.unwrap().status(), 408, "{method}");
    }
}

#[tokio::test]
async fn an_origin_has_its_time_also_where_a_body_without_bytes_does_not_end() {
    let (_origin, gateway) = with(|times| times.answer = SHORT).await;
    let (mut sender, _connection) = bare(&gateway, h2::client::Builder::new()).await;
    let request = Request::get("https://a.example/silent").header("content-length", "0").body(()).unwrap();
    let (answer, _body) = sender.send_request(request, false).unwrap();
    assert_eq!(soon("an answer", answer).await.unwrap().status(), 504);
}

#[tokio::test]
async fn r7_a_page_of_the_gateways_own_is_not_held_for_a_client_that_takes_nothing() {
    let (_origin, gateway) = with(|times| times.write = SHORT).await;
    // nothing of any answer, or its first byte
    for window in [0, 1] {
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(window);
        let (mut sender, connection) = bare(&gateway, builder).await;
        let request = Request::get("https://b.example/").body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        let answer = soon("an answer", answer).await.unwrap();
        assert_eq!(answer.status(), 404);
        let mut body = answer.into_body();
        let mut got = 0;
        let error = soon("its end", async {
            loop {
                match body.data().await.expect("it must not look complete") {
                    Ok(data) => got += data.len(),
                    Err(error) => return error,
                }
            }
        })
        .await;
        assert!(error.is_reset() && got <= window as usize, "{error} after {got}");
        // the connection as a whole goes on
        let request = Request::head("https://b.example/").body(()).unwrap();
        let (answer, _) = sender.send_request(request, true).unwrap();
        assert_eq!(soon("an answer", answer).await.unwrap().status(), 404);
        connection.abort();
    }
    until("the requests' end", || gateway.proxy.register().requests() == 0).await;
}

/// A client of HTTP/2 that takes and gives as it likes.
async fn bare(
    gateway: &Gateway,
    builder: h2::client::Builder,
) -> (h2::client::SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let stream = shake(gateway.tls(), &gateway.papers, "a.example", &[b"h2"]).await.unwrap();
    let (sender, connection) = builder.handshake(stream).await.unwrap();
    (sender, tokio::spawn(connection))
}

#[tokio::test]
async fn an_origin_that_says_nothing_is_a_gateway_timeout() {
    let (origin, gateway) = with(|times| times.answer = SHORT).await;
    let mut raw = gateway.raw().await;
    assert_eq!(raw.ask(get("/silent", 1)).await.unwrap().status, 504);
    assert_eq!(raw.ask(get("/", 1)).await.unwrap().status, 200);
    until("the silent connection's end", || origin.open() == 1).await;
}

#[tokio::test]
async fn an_answer_that_stops_in_the_middle_is_broken_off() {
    let (_origin, gateway) = with(|times| times.answer_body = SHORT).await;
    let mut raw = gateway.raw().await;
    raw.send("POST /mirror HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        .await;
    raw.read_to(b"1\r\na\r\n").await.unwrap();
    let rest = raw.rest().await;
    assert!(!rest.ends_with(b"0\r\n\r\n"), "it must not look complete");
    // one that goes on for longer than the time, piece by piece
    let mut events = gateway.raw().await;
    events.send(get("/events", 1)).await;
    for _ in 0..60 {
        let end = events.read_to(b"data: x\n\n").await.unwrap();
        events.left.drain(..end);
    }
}

#[tokio::test]
async fn r7_a_client_that_takes_nothing_is_reset() {
    let (origin, gateway) = with(|times| times.write = SHORT).await;
    let mut raw = gateway.raw().await;
    raw.send(get("/download", 1)).await;
    raw.head().await.unwrap();
    until("the origin's connection's end", || origin.open() == 0).await;
}

#[tokio::test]
async fn r7_a_stream_of_which_nothing_is_taken_is_reset_and_its_neighbour_goes_on() {
    use http_body_util::BodyExt;

    let (origin, gateway) = with(|times| times.write = SHORT).await;
    let mut http2 = gateway.http2().await;
    let _stalled = http2.get("/download", 1).await.unwrap();
    let mut events = http2.get("/events", 1).await.unwrap();
    until("both", || origin.open() == 2).await;
    soon("the end of the one that stalls", async {
        while origin.open() == 2 {
            events.body_mut().frame().await.unwrap().unwrap();
        }
    })
    .await;
    events.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(http2.text("/", 1).await, "hello");
}

#[tokio::test]
async fn a_connection_to_an_origin_does_not_wait_for_ever() {
    let (origin, gateway) = with(|times| times.idle_upstream = SHORT).await;
    assert_eq!(gateway.raw().await.ask(get("/", 1)).await.unwrap().status, 200);
    until("its end", || origin.open() == 0).await;
}

#[tokio::test]
async fn an_upgraded_connection_on_which_nothing_moves_is_closed() {
    use futures::{SinkExt, StreamExt};

    let sockets = crate::world::WebSockets::new().await;
    let gateway = Gateway::with(&[("ws.example", sockets.address)], |settings| {
        settings.times.tunnel = Duration::from_millis(300);
    });
    let stream = tokio::net::TcpStream::connect(gateway.plain()).await.unwrap();
    let (mut socket, _) = tokio_tungstenite::client_async("ws://ws.example/", stream).await.unwrap();
    for _ in 0..20 {
        socket.send("x".into()).await.unwrap();
        soon("an echo", socket.next()).await.unwrap().unwrap();
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    assert!(!matches!(soon("the end", socket.next()).await, Some(Ok(_))));
}
