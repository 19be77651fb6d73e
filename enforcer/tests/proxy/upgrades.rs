//! Connections that become something else: WebSockets over HTTP/1.1 and over HTTP/2.

use enforcer::web::proxy::Ended;
use futures::{SinkExt, StreamExt};
use http_body_util::Full;
use hyper::ext::Protocol;
use hyper::http::Request;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::world::{Gateway, Http2, Origin, Raw, WebSockets, soon, until};

async fn open(gateway: &Gateway, session: u8) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(gateway.plain()).await.unwrap();
    let mut request = "ws://ws.example/x".into_client_request().unwrap();
    request.headers_mut().insert("x-session", u16::from(session).into());
    soon("a WebSocket", tokio_tungstenite::client_async(request, stream)).await.unwrap().0
}

/// The same over one stream of HTTP/2 (RFC 8441).
async fn open_stream(http2: &mut Http2, session: u8) -> WebSocketStream<TokioIo<hyper::upgrade::Upgraded>> {
    let request = Request::connect("https://ws.example/x")
        .extension(Protocol::from_static("websocket"))
        .header("x-session", u16::from(session))
        .header("sec-websocket-version", "13")
        .body(Full::default())
        .unwrap();
    let mut answer = soon("a WebSocket", http2.sender.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert!(!answer.headers().contains_key("upgrade"));
    let upgraded = hyper::upgrade::on(&mut answer).await.unwrap();
    WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, None).await
}

async fn echoes<S>(socket: &mut WebSocketStream<S>, text: &str)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    socket.send(Message::text(text)).await.unwrap();
    let heard = soon("an echo", socket.next()).await.unwrap().unwrap();
    assert_eq!(heard.into_text().unwrap().as_str(), text);
}

async fn is_over<S>(socket: &mut WebSocketStream<S>)
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
{
    let heard = soon("the end", socket.next()).await;
    assert!(!matches!(heard, Some(Ok(_))), "{heard:?}");
}

#[tokio::test]
async fn r1_r3_a_websocket_dies_with_its_session_and_another_goes_on() {
    let sockets = WebSockets::new().await;
    let gateway = Gateway::new(&[("ws.example", sockets.address)]);
    let mut mine = open(&gateway, 1).await;
    let mut theirs = open(&gateway, 2).await;
    let big = "x".repeat(300_000);
    for text in ["one", &big] {
        echoes(&mut mine, text).await;
        echoes(&mut theirs, text).await;
    }
    assert_eq!(gateway.end(1).await, Ended { requests: 1, upstream: 1, downstream: 1, left: 0 });
    is_over(&mut mine).await;
    until("its end at the origin", || sockets.open() == 1).await;
    echoes(&mut theirs, "two").await;
}

#[tokio::test]
async fn r1_r3_websockets_of_two_sessions_on_one_http2_connection() {
    let sockets = WebSockets::new().await;
    let gateway = Gateway::new(&[("ws.example", sockets.address)]);
    let mut http2 = gateway.http2().await;
    // the server's word that it speaks RFC 8441 comes with its settings
    http2.get("/", 3).await.ok();
    let mut mine = open_stream(&mut http2, 1).await;
    let mut theirs = open_stream(&mut http2, 2).await;
    let big = "x".repeat(300_000);
    for text in ["one", &big] {
        echoes(&mut mine, text).await;
        echoes(&mut theirs, text).await;
    }
    assert_eq!(gateway.end(1).await, Ended { requests: 1, upstream: 1, downstream: 0, left: 0 });
    is_over(&mut mine).await;
    until("its end at the origin", || sockets.open() == 1).await;
    echoes(&mut theirs, "two").await;
}

#[tokio::test]
async fn a_websocket_ends_when_either_side_closes() {
    let sockets = WebSockets::new().await;
    let gateway = Gateway::new(&[("ws.example", sockets.address)]);
    let mut polite = open(&gateway, 1).await;
    echoes(&mut polite, "one").await;
    polite.close(None).await.unwrap();
    let rude = open(&gateway, 1).await;
    drop(rude);
    until("their end at the origin", || sockets.open() == 0).await;
    let key = enforcer::web::proxy::SessionKey([1; 16]);
    until("their end here", || gateway.proxy.register().flights_of(key) == 0).await;
}

#[tokio::test]
async fn what_the_origin_is_not_allowed_to_become_is_not_asked_for() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    let answer = raw
        .ask("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n\r\n")
        .await
        .unwrap();
    assert_eq!((answer.status, answer.body), (200, b"hello".to_vec()));
    assert!(!origin.seen()[0].headers.contains_key("upgrade"));
    // and what it becomes unasked is not passed on
    for path in ["/switch", "/x/switch"] {
        let upgrade = if path == "/switch" { "" } else { "Connection: upgrade\r\nUpgrade: websocket\r\n" };
        let mut raw = gateway.raw().await;
        let answer =
            raw.ask(format!("GET {path} HTTP/1.1\r\nHost: a.example\r\n{upgrade}\r\n")).await.unwrap();
        assert_eq!(answer.status, 502, "{path}");
    }
}

#[tokio::test]
async fn an_origin_that_declines_is_heard() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    let wish = "GET / HTTP/1.1\r\nHost: a.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
    assert_eq!(raw.ask(wish).await.unwrap().body, b"hello");
    assert_eq!(raw.ask(crate::world::get("/", 1)).await.unwrap().status, 200);
    assert_eq!(origin.seen()[0].headers.get("connection").unwrap(), "upgrade");
}

#[tokio::test]
async fn over_http2_what_is_no_consent_is_not_taken_for_one() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut http2 = gateway.http2().await;
    assert_eq!(http2.text("/", 1).await, "hello");
    // the origin declines with a page; the gateway answers by itself; the protocol is not allowed
    for (path, protocol, status) in
        [("/", "websocket", 502), ("/gateway/form", "websocket", 403), ("/", "connect-udp", 501)]
    {
        let request = Request::connect(format!("https://a.example{path}"))
            .extension(Protocol::from_static(protocol))
            .body(Full::default())
            .unwrap();
        let answer = soon("an answer", http2.sender.send_request(request)).await.unwrap();
        assert_eq!(answer.status(), status, "{path} {protocol}");
    }
    let plain = Request::connect("a.example:443").body(Full::default()).unwrap();
    assert_eq!(soon("an answer", http2.sender.send_request(plain)).await.unwrap().status(), 405);
    assert_eq!(http2.text("/", 1).await, "hello");
}

#[tokio::test]
async fn bytes_that_are_no_http_pass_after_a_switch() {
    let sockets = WebSockets::new().await;
    let gateway = Gateway::new(&[("ws.example", sockets.address)]);
    let mut raw = Raw::connect(gateway.plain()).await;
    raw.send(
        "GET / HTTP/1.1\r\nHost: ws.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
    )
    .await;
    let head = raw.head().await.unwrap();
    assert_eq!(head.status, 101);
    assert_eq!(head.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    // a frame of text, masked with zeros, whose content is no line of HTTP: LF, NUL, CR
    raw.send([0x81, 0x83, 0, 0, 0, 0, b'\n', 0, b'\r']).await;
    raw.read_to(&[0x81, 3, b'\n', 0, b'\r']).await.unwrap();
}
