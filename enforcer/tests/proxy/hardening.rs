//! Bounds: at each of them a clear answer, and nobody else is hurt.

use http_body_util::Full;
use hyper::body::Bytes;
use hyper::http::Request;

use crate::world::{Gateway, Origin, Raw, WebSockets, get, shake, soon, until};

#[tokio::test]
async fn r7_heads_are_bounded_in_bytes_and_in_fields() {
    let origin = Origin::new().await;
    let gateway = Gateway::with(&[("a.example", origin.address)], |settings| {
        settings.limits.head_bytes = 8_192;
        settings.limits.head_fields = 20;
    });
    let with = |fields: String| format!("GET / HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n");
    let ask = async |text: String| gateway.raw().await.ask(text).await.map(|answer| answer.status);
    assert_eq!(ask(with(format!("X: {}\r\n", "x".repeat(7_000)))).await, Some(200));
    assert_eq!(ask(with(format!("X: {}\r\n", "x".repeat(9_000)))).await, Some(431));
    assert_eq!(ask(with("X: y\r\n".repeat(18))).await, Some(200));
    assert_eq!(ask(with("X: y\r\n".repeat(21))).await, Some(431));
    // one that never ends
    let mut raw = gateway.raw().await;
    raw.send("GET / HTTP/1.1\r\n").await;
    raw.send("X: y\r\n".repeat(10_000)).await;
    assert_eq!(raw.answer().await.unwrap().status, 431);
    assert_eq!(
        ask(format!("GET /{} HTTP/1.1\r\nHost: a.example\r\n\r\n", "x".repeat(9_000))).await,
        Some(431)
    );
    // HTTP/2
    let mut http2 = gateway.http2().await;
    let mut request = Request::get("https://a.example/");
    for _ in 0..30 {
        request = request.header("x", "y");
    }
    let request = request.body(Full::default()).unwrap();
    assert_eq!(http2.sender.send_request(request).await.unwrap().status(), 431);
    let request =
        Request::get("https://a.example/").header("x", "x".repeat(20_000)).body(Full::default()).unwrap();
    assert!(!http2.sender.send_request(request).await.is_ok_and(|answer| answer.status().is_success()));
    assert_eq!(http2.text("/", 1).await, "hello");
}

#[tokio::test]
async fn r7_connections_are_counted_for_each_address() {
    let origin = Origin::new().await;
    let gateway = Gateway::with(&[("a.example", origin.address)], |settings| {
        settings.limits.connections_of_address = 3;
    });
    let mut first = Vec::new();
    for _ in 0..3 {
        let mut raw = gateway.raw().await;
        assert_eq!(raw.ask(get("/", 1)).await.unwrap().status, 200);
        first.push(raw);
    }
    assert!(gateway.raw().await.ask(get("/", 1)).await.is_none());
    // another address
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.9:0".parse().unwrap()).unwrap();
    let stream = socket.connect(gateway.plain()).await.unwrap();
    let mut other = Raw { stream, left: Vec::new() };
    assert_eq!(other.ask(get("/", 1)).await.unwrap().status, 200);
    first.pop();
    soon("a free place", async { while gateway.raw().await.ask(get("/", 1)).await.is_none() {} }).await;
}

#[tokio::test]
async fn r7_requests_at_once_are_counted_in_all_and_for_each_address() {
    let origin = Origin::new().await;
    let sockets = WebSockets::new().await;
    let places = [("a.example", origin.address), ("ws.example", sockets.address)];
    let gateway = Gateway::with(&places, |settings| {
        settings.limits.requests = 3;
        settings.limits.requests_of_address = 2;
    });
    let from = async |address: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(format!("{address}:0").parse().unwrap()).unwrap();
        Raw { stream: socket.connect(gateway.plain()).await.unwrap(), left: Vec::new() }
    };
    let requests = || gateway.proxy.register().requests();
    // a WebSocket is one as long as it is open; so is an answer that has begun
    let mut tunnel = from("127.0.0.1").await;
    tunnel
        .send(
            "GET / HTTP/1.1\r\nHost: ws.example\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        )
        .await;
    assert_eq!(tunnel.head().await.unwrap().status, 101);
    let mut http2 = gateway.http2().await;
    let events = http2.get("/events", 1).await.unwrap();
    assert_eq!(requests(), 2);
    let refused = http2.get("/", 1).await.unwrap();
    assert_eq!(refused.status(), 503);
    assert_eq!(refused.headers().get("retry-after").unwrap(), "2");
    // another address is served until all room is taken
    let mut other = from("127.0.0.9").await;
    assert_eq!(other.ask(get("/", 2)).await.unwrap().status, 200);
    other.send(get("/silent", 2)).await;
    until("the third one", || requests() == 3).await;
    let answer = from("127.0.0.9").await.ask(get("/", 2)).await.unwrap();
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("2")));
    // the end of one makes room for another
    drop(events);
    until("the end of the events", || requests() == 2).await;
    assert_eq!(http2.text("/", 1).await, "hello");
    drop(tunnel);
    until("the end of the tunnel", || requests() == 1).await;
    drop(other);
    until("the end of all", || requests() == 0).await;
}

/// A client of HTTP/2 that does what it likes.
async fn rude(
    gateway: &Gateway,
) -> (h2::client::SendRequest<Bytes>, tokio::task::JoinHandle<Result<(), h2::Error>>) {
    let stream = shake(gateway.tls(), &gateway.papers, "a.example", &[b"h2"]).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    (sender, tokio::spawn(connection))
}

fn request(path: &str) -> Request<()> {
    Request::get(format!("https://a.example{path}")).body(()).unwrap()
}

#[tokio::test]
async fn r7_a_rapid_reset_ends_the_connection_and_hurts_nobody_else() {
    let origin = Origin::new().await;
    let gateway = Gateway::with(&[("a.example", origin.address)], |settings| settings.limits.abandoned = 50);
    let mut stranger = gateway.http2().await;
    assert_eq!(stranger.text("/", 2).await, "hello");
    let (sender, connection) = rude(&gateway).await;
    soon("its end", async {
        let mut sender = sender;
        loop {
            sender = match sender.ready().await {
                Ok(sender) => sender,
                Err(_) => return,
            };
            match sender.send_request(request("/silent"), true) {
                // the reset goes out when the answer is dropped; a yield lets it go one by one
                Ok((answer, _)) => drop(answer),
                Err(_) => return,
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let _ = soon("its end", connection).await;
    assert_eq!(stranger.text("/", 2).await, "hello");
    until("the origin's connections", || origin.open() <= 2).await;
}

#[tokio::test]
async fn r7_more_streams_than_allowed_wait_or_are_refused() {
    let origin = Origin::new().await;
    let gateway = Gateway::with(&[("a.example", origin.address)], |settings| settings.limits.streams = 4);
    let mut http2 = gateway.http2().await;
    assert_eq!(http2.text("/", 1).await, "hello");
    let many: Vec<_> = (0..20)
        .map(|_| {
            let mut http2 = http2.clone();
            tokio::spawn(async move { http2.text("/", 1).await })
        })
        .collect();
    for one in many {
        assert_eq!(soon("an answer", one).await.unwrap(), "hello");
    }
    assert!(origin.connections() <= 5, "{}", origin.connections());
}

#[tokio::test]
async fn r7_continuations_without_end_end_the_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let gateway = Gateway::new(&[]);
    let mut stream = shake(gateway.tls(), &gateway.papers, "a.example", &[b"h2"]).await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    // HEADERS without END_HEADERS, then CONTINUATION for ever, each a literal field of some bytes
    let mut field = vec![0, 1, b'x', 100];
    field.extend([b'y'; 100]);
    let frame = move |kind: u8| {
        let mut frame = vec![0, 0, u8::try_from(field.len()).unwrap(), kind, 0, 0, 0, 0, 1];
        frame.extend(&field);
        frame
    };
    stream.write_all(&frame(1)).await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let flood = tokio::spawn(async move { while write.write_all(&frame(9)).await.is_ok() {} });
    let mut said = Vec::new();
    let _ = soon("the end", read.read_to_end(&mut said)).await;
    soon("the flood's end", flood).await.unwrap();
}

#[tokio::test]
async fn r7_a_head_that_unpacks_to_megabytes_is_not_unpacked() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut stranger = gateway.http2().await;
    assert_eq!(stranger.text("/", 2).await, "hello");
    let mut stream = shake(gateway.tls(), &gateway.papers, "a.example", &[b"h2"]).await.unwrap();
    // GET https://a.example/, a field of 4,000 bytes that is remembered, and 8,000 times that: 32 MB
    let mut head = vec![0x82, 0x87, 0x84, 0x41, 9];
    head.extend(b"a.example");
    head.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    head.extend([b'y'; 4_000]);
    head.extend([0xbe; 8_000]);
    let length = u32::try_from(head.len()).unwrap().to_be_bytes();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    stream.write_all(&[length[1], length[2], length[3], 1, 5, 0, 0, 0, 1]).await.unwrap();
    stream.write_all(&head).await.unwrap();
    let kind = soon("what becomes of it", async {
        loop {
            let mut frame = [0; 9];
            if stream.read_exact(&mut frame).await.is_err() {
                return None;
            }
            let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
            let mut payload = vec![0; length as usize];
            stream.read_exact(&mut payload).await.unwrap();
            // settings, pings and windows say nothing of it
            if !matches!(frame[3], 4 | 6 | 8) {
                return Some(frame[3]);
            }
        }
    })
    .await;
    // an answer, a reset of the stream, or the connection's end
    assert!(matches!(kind, None | Some(1 | 3 | 7)), "{kind:?}");
    assert_eq!(origin.seen().len(), 1, "no origin sees it");
    assert_eq!(stranger.text("/", 2).await, "hello");
}
