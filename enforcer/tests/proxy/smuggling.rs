//! What can be understood in two ways: the origin never sees two requests where we saw one.

use std::time::Duration;

use crate::world::{Gateway, Origin, get};

const SHORT: Duration = Duration::from_millis(300);

/// A second request that must never arrive.
const HIDDEN: &str = "GET /hidden HTTP/1.1\r\nHost: a.example\r\n\r\n";

#[tokio::test]
async fn what_can_be_understood_in_two_ways_is_refused_and_nothing_behind_it_is_read() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let head = |fields: &str| format!("POST /seen HTTP/1.1\r\nHost: a.example\r\n{fields}\r\n\r\n");
    let requests = [
        head("Content-Length: 6\r\nTransfer-Encoding: chunked") + "0\r\n\r\n",
        head("Transfer-Encoding: chunked\r\nContent-Length: 6") + "0\r\n\r\n",
        head("Content-Length: 0\r\nContent-Length: 50"),
        head("Content-Length: 0\r\nContent-Length: 0"),
        head("Content-Length: 0, 0"),
        head("Content-Length: +0"),
        head("Content-Length: 0x0"),
        head("Content-Length: 99999999999999999999999"),
        head("Transfer-Encoding: chunked, identity") + "0\r\n\r\n",
        head("Transfer-Encoding: identity"),
        head("Transfer-Encoding: xchunked") + "0\r\n\r\n",
        head("Transfer-Encoding : chunked") + "0\r\n\r\n",
        head("Transfer-Encoding\t: chunked") + "0\r\n\r\n",
        head("Transfer-Encoding:\r\n chunked") + "0\r\n\r\n",
        head(" Transfer-Encoding: chunked") + "0\r\n\r\n",
        head("X: a\rTransfer-Encoding: chunked") + "0\r\n\r\n",
        head("X: a\nTransfer-Encoding: chunked") + "0\r\n\r\n",
        head("X: a\0b"),
        head("X a"),
        head(": a"),
        head("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked") + "0\r\n\r\n",
        head("Transfer-Encoding: chunked") + "0\n\r\n",
        head("Transfer-Encoding: chunked") + "0\r\n\n",
        head("Transfer-Encoding: chunked") + "+0\r\n\r\n",
        head("Transfer-Encoding: chunked") + "0x0\r\n\r\n",
        head("Transfer-Encoding: chunked") + "1;x\n0\r\n\r\n",
        head("Transfer-Encoding: chunked") + "10000000000000000\r\n",
        head("Transfer-Encoding: chunked") + "1\r\nab\r\n0\r\n\r\n",
        "POST /seen HTTP/1.1\nHost: a.example\nContent-Length: 0\n\n".into(),
        "POST  /seen HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n".into(),
        "POST /seen\tHTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n".into(),
        "POST /seen HTTP/1.0\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".into(),
        "POST /seen HTTP/2.0\r\nHost: a.example\r\n\r\n".into(),
        "POST /seen\r\n\r\n".into(),
    ];
    for request in &requests {
        let mut raw = gateway.raw().await;
        raw.send(format!("{request}{HIDDEN}")).await;
        let answer = raw.answer().await;
        assert_eq!(answer.as_ref().map(|answer| answer.status), Some(400), "{request:?}: {answer:?}");
        assert!(raw.rest().await.is_empty(), "{request:?}");
        assert!(!hidden(&origin), "{request:?}");
    }
    // these end where they end for everybody, and name what is not served
    for (request, status) in [
        ("POST /seen HTTP/1.1\r\nHost: a.example\r\nHost: b.example\r\nContent-Length: 0\r\n\r\n", 400),
        ("POST http://b.example/seen HTTP/1.1\r\nHost: a.example\r\nContent-Length: 0\r\n\r\n", 400),
        ("GET /a/../seen HTTP/1.1\r\nHost: a.example\r\n\r\n", 400),
        ("CONNECT a.example:80 HTTP/1.1\r\nHost: a.example\r\n\r\n", 405),
    ] {
        let answer = gateway.raw().await.ask(request).await.unwrap();
        assert_eq!(answer.status, status, "{request:?}");
    }
    assert!(!origin.seen().iter().any(|seen| seen.target.contains("seen")), "{:?}", origin.seen());
    assert_eq!(gateway.raw().await.ask(get("/", 1)).await.unwrap().status, 200);
}

fn hidden(origin: &Origin) -> bool {
    origin.seen().iter().any(|seen| seen.target == "/hidden")
}

#[tokio::test]
async fn what_looks_like_a_request_in_a_body_stays_a_body() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    let length = HIDDEN.len();
    let sized = format!("POST /sum HTTP/1.1\r\nHost: a.example\r\nContent-Length: {length}\r\n\r\n{HIDDEN}");
    let chunked = format!(
        "POST /sum HTTP/1.1\r\nHost: a.example\r\nTransfer-Encoding: chunked\r\n\r\n{length:x};a=\"b\"\r\n{HIDDEN}\r\n0\r\n\r\n"
    );
    for request in [&sized, &chunked] {
        assert_eq!(raw.ask(request).await.unwrap().status, 200);
    }
    // with a body that nobody expects, also behind a GET
    let get = format!("GET /sum HTTP/1.1\r\nHost: a.example\r\nContent-Length: {length}\r\n\r\n{HIDDEN}");
    assert_eq!(raw.ask(get).await.unwrap().status, 200);
    assert!(!hidden(&origin));
    assert!(origin.seen().iter().all(|seen| seen.body == HIDDEN.as_bytes()));
    assert_eq!(origin.seen().len(), 3);
}

#[tokio::test]
async fn a_body_that_its_gateway_did_not_read_is_not_the_next_request() {
    let origin = Origin::new().await;
    let gateway =
        Gateway::with(&[("a.example", origin.address)], |settings| settings.origins[0].max_body = 5);
    let mut raw = gateway.raw().await;
    let length = HIDDEN.len();
    raw.send(format!("POST / HTTP/1.1\r\nHost: a.example\r\nContent-Length: {length}\r\n\r\n{HIDDEN}")).await;
    assert_eq!(raw.answer().await.unwrap().status, 413);
    raw.send(HIDDEN.replace("hidden", "next")).await;
    let _ = raw.answer().await;
    assert!(!hidden(&origin));
}

#[tokio::test]
async fn requests_that_are_sent_together_are_answered_in_their_order() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    raw.send(format!("{}{}{}", get("/1", 1), get("/2", 2), get("/3", 1))).await;
    for path in ["/1", "/2", "/3"] {
        assert_eq!(raw.answer().await.unwrap().field("x-path"), Some(path));
    }
    // the bad one is told so in its turn, and not before
    raw.send(format!("{}GET /bad HTTP/1.1\r\n folded\r\n\r\n", get("/4", 1))).await;
    assert_eq!(raw.answer().await.unwrap().field("x-path"), Some("/4"));
    assert_eq!(raw.answer().await.unwrap().status, 400);
    assert!(raw.rest().await.is_empty());
}

/// The pieces of which requests are made, good and bad.
const PIECES: [&str; 24] = [
    "GET /a HTTP/1.1\r\nHost: a.example\r\n",
    "POST /b HTTP/1.1\r\nHost: a.example\r\n",
    "GET /c HTTP/1.0\r\nHost: a.example\r\n",
    "Host: a.example\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Content-Length:5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    "X: y\r\n",
    "X: y\n",
    " folded\r\n",
    "Connection: keep-alive, Content-Length\r\n",
    "Connection: Transfer-Encoding\r\n",
    "\r\n",
    "\n",
    "\r",
    "5\r\n",
    "abcde",
    "abcde\r\n",
    "0\r\n",
    "5;x=\"\r\n",
    "GET /d HTTP/1.1\r\nHost: a.example\r\n\r\n",
];

#[tokio::test]
async fn whatever_is_sent_the_origin_sees_as_many_requests_as_were_answered() {
    let origin = Origin::new().await;
    // what is incomplete has to end
    let gateway = Gateway::with(&[("a.example", origin.address)], |settings| {
        let times = &mut settings.times;
        (times.head, times.body, times.keep_alive) = (SHORT, SHORT, SHORT);
    });
    let seed = std::env::var("ENFORCER_TEST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(5u64);
    let mut state = seed;
    let mut next = |below: usize| {
        // Knuth's MMIX generator: the same pieces for the same seed
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % below
    };
    let texts: Vec<String> = (0..900)
        .map(|number| {
            let mut text = PIECES[next(3)].to_owned();
            for _ in 0..next(9) {
                // mostly what could come next
                let piece =
                    if next(3) == 0 { next(PIECES.len()) } else { [4, 5, 7, 10, 15, 18, 20, 21][next(8)] };
                text.push_str(PIECES[piece]);
            }
            // so that the origin can tell them apart
            text.replace(" /", &format!(" /{number}/"))
        })
        .collect();
    let gateway = &gateway;
    let asked = texts.iter().map(|text| async move {
        let mut raw = gateway.raw().await;
        raw.send(text).await;
        String::from_utf8(raw.rest().await).unwrap()
    });
    let said = futures::future::join_all(asked).await;
    let mut good = 0;
    for (number, (text, said)) in texts.iter().zip(said).enumerate() {
        let answered = said.matches(" 200 OK\r\n").count();
        let mine = format!("/{number}/");
        let seen = origin.seen().iter().filter(|seen| seen.target.starts_with(&mine)).count();
        assert_eq!(seen, answered, "seed {seed}: {text:?}: {said:?}");
        good += answered;
    }
    assert!(good > 50, "seed {seed}: only {good} requests were good: the pieces are badly chosen");
}
