//! Answers of origins that the guard refuses, or thinks about.

use enforcer::web::proxy::Ended;
use http_body_util::BodyExt;
use hyper::ext::Protocol;
use hyper::http::Request;

use crate::world::{Gateway, Origin, Raw, WebSockets, get, soon, until};

#[tokio::test]
async fn r6_what_the_guard_refuses_never_reaches_the_client() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    // complete, in pieces, without end
    for path in ["/refused/x", "/refused/big", "/refused/events"] {
        let answer = raw.ask(get(path, 1)).await.unwrap();
        assert_eq!((answer.status, answer.body), (451, b"not this".to_vec()), "{path}");
        until("the origin's connection", || origin.open() == 0).await;
    }
    // what else was asked over the same connection is served
    assert_eq!(raw.ask(get("/x", 1)).await.unwrap().body, b"hello");
    let mut http2 = gateway.http2().await;
    let refused = http2.get("/refused/download", 1).await.unwrap();
    assert_eq!(refused.status(), 451);
    assert_eq!(refused.into_body().collect().await.unwrap().to_bytes(), "not this");
    assert_eq!(http2.text("/x", 1).await, "hello");
    until("the origin's connections", || origin.open() == 1).await;
}

#[tokio::test]
async fn r6_the_guard_is_asked_before_a_tunnel_begins() {
    let sockets = WebSockets::new().await;
    let gateway = Gateway::new(&[("ws.example", sockets.address)]);
    let wish = |path: &str| {
        format!(
            "GET {path} HTTP/1.1\r\nHost: ws.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
    };
    let mut raw = Raw::connect(gateway.plain()).await;
    let answer = raw.ask(wish("/refused/x")).await.unwrap();
    assert_eq!((answer.status, answer.body), (451, b"not this".to_vec()));
    assert_eq!(answer.field("upgrade"), None);
    until("the origin's socket", || sockets.open() == 0).await;
    // the connection still speaks HTTP
    assert_eq!(raw.ask(wish("/refused/x")).await.unwrap().status, 451);
    let mut http2 = gateway.http2().await;
    http2.get("/", 1).await.ok();
    let request = Request::connect("https://ws.example/refused/x")
        .extension(Protocol::from_static("websocket"))
        .header("sec-websocket-version", "13")
        .body(http_body_util::Full::default())
        .unwrap();
    let answer = soon("an answer", http2.sender.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), 451);
    let asked: Vec<u16> =
        gateway.proxy.guard().seen.lock().unwrap().iter().map(|(_, status)| *status).collect();
    assert_eq!(asked, [101, 101, 200]);
    // one that is let through
    assert_eq!(raw.ask(wish("/x")).await.unwrap().status, 101);
    until("its socket", || sockets.open() == 1).await;
}

#[tokio::test]
async fn r1_a_session_ends_while_the_guard_thinks_about_an_answer() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut shared = gateway.raw().await;
    assert_eq!(shared.ask(get("/", 2)).await.unwrap().status, 200);
    shared.send(get("/late/events", 1)).await;
    let held = std::sync::Arc::clone(&gateway.proxy.guard().held);
    soon("the answer", held.arrived.acquire()).await.unwrap().forget();
    assert_eq!(gateway.end(1).await, Ended { requests: 1, upstream: 1, downstream: 0, left: 0 });
    assert_eq!(shared.answer().await.unwrap().status, 403);
    // its twin, of somebody who lives
    shared.send(get("/late/x", 2)).await;
    soon("the answer", held.arrived.acquire()).await.unwrap().forget();
    held.go_on.add_permits(1);
    assert_eq!(shared.answer().await.unwrap().status, 200);
}
