//! What reaches an origin, and what comes back.

use std::process::Stdio;

use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use hyper::http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};

use crate::world::{BOUND, Gateway, Origin, Raw, get, shake, soon};

#[tokio::test]
async fn a_request_reaches_the_origin_of_its_host_and_path() {
    let (whole, app) = (Origin::new().await, Origin::new().await);
    let gateway = Gateway::new(&[("a.example/", whole.address), ("a.example/app", app.address)]);
    let mut raw = gateway.raw().await;
    for (path, name) in [("/x", "o0"), ("/apple", "o0"), ("/app", "o1"), ("/app/x?y=/..", "o1")] {
        let answer = raw.ask(get(path, 1)).await.unwrap();
        assert_eq!(answer.status, 200);
        assert_eq!(answer.body, b"hello");
        let guarded = answer.field("x-guarded").unwrap();
        assert_eq!(guarded.split(' ').next(), Some(name), "{path}");
    }
    assert_eq!(app.seen()[1].target, "/app/x?y=/..");
    assert_eq!((whole.seen().len(), app.seen().len()), (2, 2));
    let answer = raw.ask("GET / HTTP/1.1\r\nHost: b.example\r\n\r\n").await.unwrap();
    assert_eq!(answer.status, 404);
}

#[tokio::test]
async fn requests_of_a_connection_share_a_connection_to_the_origin() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    for path in ["/", "/empty", "/hop", "/trailers", "/big"] {
        raw.ask(get(path, 1)).await.unwrap();
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_head_has_the_length_of_what_it_is_the_head_of() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    raw.send("HEAD /big HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let head = raw.head().await.unwrap();
    assert_eq!(head.field("content-length"), Some("3145728"));
    assert_eq!(raw.ask(get("/", 1)).await.unwrap().body, b"hello");
}

#[tokio::test]
async fn what_is_hop_by_hop_ends_here_in_both_directions() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    let answer = raw
        .ask(
            "GET /hop HTTP/1.1\r\nHost: a.example\r\nConnection: x-mine, host\r\nX-Mine: 1\r\nTE: trailers\r\n\
             Keep-Alive: 5\r\nX-Forwarded-For: 10.0.0.1\r\nx_forwarded_for: 10.0.0.2\r\nX-Kept: 3\r\n\
             X-Remote-User: root\r\nProxy-Connection: keep-alive\r\nUpgrade: h2c\r\nHTTP2-Settings: x\r\n\r\n",
        )
        .await
        .unwrap();
    for gone in ["x-secret", "keep-alive", "connection"] {
        assert_eq!(answer.field(gone), None, "{gone}");
    }
    assert_eq!(answer.field("x-kept"), Some("2"));
    let seen = origin.seen().remove(0);
    for gone in [
        "x-mine",
        "keep-alive",
        "x_forwarded_for",
        "x-remote-user",
        "proxy-connection",
        "upgrade",
        "http2-settings",
    ] {
        assert!(!seen.headers.contains_key(gone), "{gone}");
    }
    for (name, value) in [
        ("host", "a.example"),
        ("x-kept", "3"),
        ("te", "trailers"),
        ("x-forwarded-for", "127.0.0.1"),
        ("x-forwarded-proto", "http"),
        ("x-forwarded-host", "a.example"),
        ("forwarded", "for=127.0.0.1;proto=http;host=\"a.example\""),
    ] {
        assert_eq!(seen.headers.get(name).unwrap(), value, "{name}");
    }
}

#[tokio::test]
async fn a_trusted_proxy_is_believed() {
    let origin = Origin::new().await;
    let gateway = Gateway::with(&[("a.example", origin.address)], |settings| {
        settings.trusted_proxies = vec!["127.0.0.0/8".parse().unwrap()];
        settings.origins[0].host_header = Some("inside.example".into());
    });
    let mut raw = gateway.raw().await;
    raw.ask(
        "GET / HTTP/1.1\r\nHost: a.example\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.9\r\nX-Forwarded-Proto: https\r\n\r\n",
    )
    .await
    .unwrap();
    let seen = origin.seen().remove(0);
    assert_eq!(seen.headers.get("x-forwarded-for").unwrap(), "192.0.2.1, 127.0.0.9, 127.0.0.1");
    assert_eq!(seen.headers.get("x-forwarded-proto").unwrap(), "https");
    assert_eq!(seen.headers.get("host").unwrap(), "inside.example");
    let peer = gateway.proxy.guard().peers.lock().unwrap()[0];
    assert_eq!(peer.client.to_string(), "192.0.2.1");
    assert!(peer.https && peer.trusted);
}

#[tokio::test]
async fn the_guard_reads_a_form_within_its_bound() {
    let gateway = Gateway::new(&[]);
    let mut raw = gateway.raw().await;
    let form = "POST /gateway/form HTTP/1.1\r\nHost: A.example:80\r\nContent-Length: 5\r\n\r\nabcde";
    assert_eq!(raw.ask(form).await.unwrap().body, b"5 bytes for a.example");
    let chunked = "POST /gateway/form HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n\
                   41\r\n01234567890123456789012345678901234567890123456789012345678901234\r\n0\r\n\r\n";
    assert_eq!(raw.ask(chunked).await.unwrap().status, 400);
}

#[tokio::test]
async fn bodies_pass_both_ways_piece_by_piece() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    raw.send("POST /mirror HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    // each piece comes back before the next one is sent
    for piece in ["3\r\none\r\n", "3\r\ntwo\r\n"] {
        raw.send(piece).await;
        raw.read_to(piece.as_bytes()).await.unwrap();
    }
    raw.send("0\r\n\r\n").await;
    raw.read_to(b"0\r\n\r\n").await.unwrap();
    assert_eq!(raw.left.windows(12).filter(|bytes| bytes == b"HTTP/1.1 200").count(), 1);
}

#[tokio::test]
async fn a_whole_upload_before_the_first_byte_of_the_answer_is_read() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let body = vec![9; 4 << 20];
    let mut raw = gateway.raw().await;
    raw.send(format!("POST /sum HTTP/1.1\r\nHost: a.example\r\nContent-Length: {}\r\n\r\n", body.len()))
        .await;
    raw.send(&body).await;
    assert_eq!(raw.answer().await.unwrap().body, format!("{} None", body.len()).into_bytes());
    assert_eq!(origin.seen()[0].body, body);
}

#[tokio::test]
async fn trailers_pass_to_who_can_take_them() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let request =
        Request::get("https://a.example/trailers").header("te", "trailers").body(Full::default()).unwrap();
    let mut http2 = gateway.http2().await;
    let answer = http2.sender.send_request(request).await.unwrap();
    let whole = answer.into_body().collect().await.unwrap();
    assert_eq!(whole.trailers().unwrap().get("x-sum").unwrap(), "42");
    assert_eq!(whole.to_bytes(), "body");
    let mut raw = gateway.raw().await;
    let answer = raw.ask(get("/trailers", 1).replace("\r\n\r\n", "\r\nTE: trailers\r\n\r\n")).await.unwrap();
    assert!(String::from_utf8(answer.body).unwrap().ends_with("0\r\nx-sum: 42\r\n\r\n"));
    let answer = raw.ask(get("/trailers", 1)).await.unwrap();
    assert!(String::from_utf8(answer.body).unwrap().ends_with("0\r\n\r\n"));
}

#[tokio::test]
async fn r2_trailers_of_a_request_reach_no_origin() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    let trailers = "POST /sum HTTP/1.1\r\nHost: a.example\r\nTrailer: x-mine, x-remote-user\r\n\
                    Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nX-Mine: 7\r\nX-Remote-User: root\r\n\r\n";
    let answer = raw.ask(trailers).await.unwrap();
    assert_eq!(answer.body, b"1 None");
    assert!(!origin.seen()[0].headers.contains_key("trailer"));
    // what is asked over the same connections is served
    assert_eq!(raw.ask(get("/", 1)).await.unwrap().body, b"hello");
    assert_eq!(origin.connections(), 1);
    // HTTP/2
    let stream = shake(gateway.tls(), &gateway.papers, "a.example", &[b"h2"]).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("https://a.example/sum").header("trailer", "x-remote-user").body(()).unwrap();
    let (answer, mut body) = sender.send_request(request, false).unwrap();
    body.send_data(Bytes::from_static(b"ab"), false).unwrap();
    let mut fields = hyper::HeaderMap::new();
    fields.insert("x-remote-user", "root".parse().unwrap());
    body.send_trailers(fields).unwrap();
    let mut answer = soon("an answer", answer).await.unwrap().into_body();
    assert_eq!(soon("a body", answer.data()).await.unwrap().unwrap(), "2 None");
}

#[tokio::test]
async fn r2_nobody_says_by_himself_who_he_is() {
    let origin = Origin::new().await;
    let gateway = Gateway::with(&[("a.example", origin.address)], |settings| {
        settings.trusted_proxies = vec!["127.0.0.2".parse().unwrap()];
        settings.never_from_clients.push("x-ours".into());
    });
    let said = "X-Remote-User: root\r\nx_remote.user: root\r\nX-Forwarded-User: root\r\nX-Forwarded-Email: r@a\r\n\
                X-Ours: 1\r\nX-Original-URL: /admin\r\nX-Forwarded-Port: 1\r\nX-Kept: 1\r\n";
    // from a client, and from a proxy that passes on what it does not know
    for source in ["127.0.0.1:0", "127.0.0.2:0"] {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(source.parse().unwrap()).unwrap();
        let stream = socket.connect(gateway.plain()).await.unwrap();
        let mut raw = Raw { stream, left: Vec::new() };
        raw.ask(format!("GET / HTTP/1.1\r\nHost: a.example\r\n{said}\r\n")).await.unwrap();
        let seen = origin.seen().pop().unwrap().headers;
        let gone = [
            "x-remote-user",
            "x_remote.user",
            "x-forwarded-user",
            "x-forwarded-email",
            "x-ours",
            "x-original-url",
        ];
        for gone in gone {
            assert!(!seen.contains_key(gone), "{source}: {gone}");
        }
        assert_eq!(seen.contains_key("x-forwarded-port"), source.starts_with("127.0.0.2"));
        assert!(seen.contains_key("x-kept"));
        // the guard sees what was said, apart from the head
        let (reserved, left) = gateway.proxy.guard().reserved.lock().unwrap().pop().unwrap();
        assert_eq!(
            (reserved.get("x-remote-user").unwrap(), reserved.len(), left),
            (&"root".parse().unwrap(), 6, 0)
        );
    }
    // what the guard says by itself passes
    gateway
        .raw()
        .await
        .ask("GET / HTTP/1.1\r\nHost: a.example\r\nX-Named: 1\r\nX-Remote-User: root\r\n\r\n")
        .await;
    assert_eq!(origin.seen().pop().unwrap().headers.get("x-remote-user").unwrap(), "alice");
}

#[tokio::test]
async fn a_body_of_unknown_length_passes_with_every_method() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let stream = shake(gateway.tls(), &gateway.papers, "a.example", &[b"h2"]).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    for method in ["GET", "DELETE", "POST", "OPTIONS"] {
        let request = Request::builder().method(method).uri("https://a.example/sum").body(()).unwrap();
        let (answer, mut body) = sender.send_request(request, false).unwrap();
        body.send_data(Bytes::from_static(b"abc"), true).unwrap();
        let mut answer = soon("an answer", answer).await.unwrap().into_body();
        assert_eq!(soon("a body", answer.data()).await.unwrap().unwrap(), "3 None", "{method}");
    }
    // HTTP/1.1, and a body that the head says has no bytes
    let mut raw = gateway.raw().await;
    let chunked =
        "GET /sum HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
    assert_eq!(raw.ask(chunked).await.unwrap().body, b"2 None");
    assert_eq!(raw.ask(get("/", 1)).await.unwrap().body, b"hello");
}

#[tokio::test]
async fn a_head_of_the_gateways_own_page_has_no_body() {
    let gateway = Gateway::new(&[]);
    let mut raw = gateway.raw().await;
    raw.send("HEAD / HTTP/1.1\r\nHost: a.example\r\n\r\n").await;
    let head = raw.head().await.unwrap();
    let whole = raw.ask("GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").await.unwrap();
    assert_eq!(head.field("content-length"), Some(&*whole.body.len().to_string()));
    let mut http2 = gateway.http2().await;
    let request = Request::head("https://a.example/").body(Full::default()).unwrap();
    let answer = soon("an answer", http2.sender.send_request(request)).await.unwrap();
    assert_eq!(answer.status(), 404);
    assert!(hyper::body::Body::is_end_stream(answer.body()), "no frame comes after it");
}

#[tokio::test]
async fn continue_is_said_when_the_body_is_wanted_and_only_then() {
    let origin = Origin::new().await;
    let gateway =
        Gateway::with(&[("a.example", origin.address)], |settings| settings.origins[0].max_body = 10);
    let mut raw = gateway.raw().await;
    let post = |length: usize| {
        format!(
            "POST /sum HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n"
        )
    };
    raw.send(post(5)).await;
    assert_eq!(raw.head().await.unwrap().status, 100);
    raw.send("abcde").await;
    assert_eq!(raw.answer().await.unwrap().status, 200);
    assert!(!origin.seen()[0].headers.contains_key("expect"));
    raw.send(post(11)).await;
    assert_eq!(raw.head().await.unwrap().status, 413);
    let mut raw = gateway.raw().await;
    let other = "POST / HTTP/1.1\r\nHost: a.example\r\nExpect: wonders\r\nContent-Length: 1\r\n\r\na";
    assert_eq!(raw.ask(other).await.unwrap().status, 417);
}

#[tokio::test]
async fn a_body_that_is_longer_than_the_origin_allows_is_refused_and_said_so() {
    let origin = Origin::new().await;
    let gateway =
        Gateway::with(&[("a.example", origin.address)], |settings| settings.origins[0].max_body = 10);
    let mut raw = gateway.raw().await;
    // more than is read before the answer: the answer must reach who is still sending
    let long = vec![b'a'; 200_000];
    raw.send(format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {}\r\n\r\n", long.len())).await;
    raw.send(&long).await;
    assert_eq!(raw.answer().await.unwrap().status, 413);
    let mut raw = gateway.raw().await;
    let chunked = "POST / HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\nb\r\n01234567890\r\n0\r\n\r\n";
    assert_eq!(raw.ask(chunked).await.unwrap().status, 413);
    assert!(origin.seen().is_empty());
}

#[tokio::test]
async fn an_answer_may_come_before_the_end_of_the_request() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    raw.send("POST /early HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1000000\r\n\r\nabc").await;
    let answer = raw.answer().await.unwrap();
    assert_eq!((answer.status, answer.body), (413, b"too much".to_vec()));
}

#[tokio::test]
async fn a_connection_that_the_origin_closed_is_not_used_again() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    for _ in 0..3 {
        assert_eq!(raw.ask(get("/close", 1)).await.unwrap().body, b"bye");
    }
    assert_eq!(origin.connections(), 3);
}

/// An origin that answers the first request of a connection, and hangs up when it reads the second.
async fn hangs_up() -> (std::net::SocketAddr, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let lines = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let book = std::sync::Arc::clone(&lines);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let book = std::sync::Arc::clone(&book);
            tokio::spawn(async move {
                let mut raw = Raw { stream, left: Vec::new() };
                for number in 0..2 {
                    let Some(end) = raw.read_to(b"\r\n\r\n").await else { return };
                    let head = String::from_utf8(raw.left.drain(..end).collect()).unwrap();
                    book.lock().unwrap().push(head.lines().next().unwrap().to_owned());
                    if number == 0 {
                        raw.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                    }
                }
            });
        }
    });
    (address, lines)
}

#[tokio::test]
async fn what_may_be_repeated_is_tried_once_more_when_the_origin_hangs_up() {
    let (address, lines) = hangs_up().await;
    let gateway = Gateway::new(&[("a.example", address)]);
    let mut raw = gateway.raw().await;
    for path in ["/1", "/2", "/3"] {
        assert_eq!(raw.ask(get(path, 1)).await.unwrap().body, b"ok", "{path}");
    }
    // the second one is asked on the first connection and again on a fresh one; so is the third
    let asked = lines.lock().unwrap().clone();
    assert_eq!(
        asked,
        ["/1", "/2", "/2", "/3", "/3"].map(|path| format!("GET {path} HTTP/1.1")),
        "exactly once more"
    );
}

#[tokio::test]
async fn what_may_not_be_repeated_is_never_sent_twice() {
    let (address, lines) = hangs_up().await;
    let gateway = Gateway::new(&[("a.example", address)]);
    let mut raw = gateway.raw().await;
    for request in [
        "POST /2 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n",
        "PUT /2 HTTP/1.1\r\nHost: a.example\r\nContent-Length: 1\r\n\r\na",
    ] {
        lines.lock().unwrap().clear();
        assert_eq!(raw.ask(get("/1", 1)).await.unwrap().status, 200);
        assert_eq!(raw.ask(request).await.unwrap().status, 502);
        let twice = lines.lock().unwrap().iter().filter(|line| line.contains("/2")).count();
        assert_eq!(twice, 1, "{request}");
    }
}

#[tokio::test]
async fn an_origin_that_is_not_there_is_a_bad_gateway() {
    let nobody = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let gateway = Gateway::new(&[("a.example", nobody)]);
    let answer = gateway.raw().await.ask(get("/", 1)).await.unwrap();
    assert_eq!(answer.status, 502);
    assert!(String::from_utf8(answer.body).unwrap().contains("does not answer"));
}

#[tokio::test]
async fn http2_sees_the_same_origin_and_cookies_become_one_field() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut http2 = gateway.http2().await;
    assert_eq!(http2.text("/a?b=c", 1).await, "hello");
    let request = Request::get("https://a.example/x")
        .header("cookie", "a=1")
        .header("cookie", "b=2")
        .body(Full::default())
        .unwrap();
    http2.sender.send_request(request).await.unwrap();
    let seen = origin.seen();
    assert_eq!(seen[0].target, "/a?b=c");
    assert_eq!(seen[0].headers.get("host").unwrap(), "a.example");
    assert_eq!(seen[0].headers.get("x-forwarded-proto").unwrap(), "https");
    assert_eq!(seen[1].headers.get("cookie").unwrap(), "a=1; b=2");
}

#[tokio::test]
async fn http2_streams_a_body_both_ways() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let stream = shake(gateway.tls(), &gateway.papers, "a.example", &[b"h2"]).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (send, pieces) = tokio::sync::mpsc::channel::<Bytes>(1);
    let pieces = tokio_stream::wrappers::ReceiverStream::new(pieces);
    let body =
        StreamBody::new(futures::StreamExt::map(pieces, |piece| Ok::<_, hyper::Error>(Frame::data(piece))));
    let request = Request::post("https://a.example/mirror").body(BodyExt::boxed(body)).unwrap();
    let answer = tokio::spawn(sender.send_request(request));
    send.send(Bytes::from_static(b"one")).await.unwrap();
    let mut answer = soon("an answer", answer).await.unwrap().unwrap().into_body();
    for piece in ["one", "two", "three"] {
        if piece != "one" {
            send.send(Bytes::from(piece)).await.unwrap();
        }
        let frame = soon("a piece", answer.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), piece);
    }
    drop(send);
    while let Some(frame) = soon("the end", answer.frame()).await {
        assert!(frame.unwrap().into_data().unwrap().is_empty());
    }
}

#[tokio::test]
async fn curl_is_served_over_each_protocol() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    for protocol in ["--http1.1", "--http2"] {
        let address = gateway.tls();
        let output = tokio::process::Command::new("curl")
            .args(["-sS", protocol, "--max-time", &BOUND.as_secs().to_string(), "--cacert"])
            .arg(gateway.papers.authority_file())
            .args(["--resolve", &format!("a.example:{}:{}", address.port(), address.ip())])
            .args(["-w", " %{http_version} %{http_code}", "--data-binary", "@-"])
            .arg(format!("https://a.example:{}/sum", address.port()))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        let version = if protocol == "--http2" { "2" } else { "1.1" };
        assert_eq!(said, format!("0 None {version} 200"), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[tokio::test]
async fn plain_http_is_sent_to_https() {
    let gateway = Gateway::with(&[], |settings| settings.public_port = 8443);
    let mut raw = Raw::connect(gateway.redirect()).await;
    let answer = raw.ask("GET /a?b HTTP/1.1\r\nHost: a.example:80\r\n\r\n").await.unwrap();
    assert_eq!(answer.status, 308);
    assert_eq!(answer.field("location"), Some("https://a.example:8443/a?b"));
    let answer = raw.ask("GET / HTTP/1.1\r\nHost: a.example/evil\r\n\r\n").await.unwrap();
    assert_eq!(answer.status, 400);
}
