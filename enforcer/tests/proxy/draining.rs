//! The end of the proxy itself.

use std::time::Duration;

use crate::world::{BOUND, Gateway, Origin, get, soon, until};

#[tokio::test]
async fn what_is_on_its_way_comes_to_its_end_and_nothing_more_begins() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut idle = gateway.raw().await;
    assert_eq!(idle.ask(get("/", 1)).await.unwrap().status, 200);
    let mut busy = gateway.raw().await;
    busy.send("POST /sum HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\na").await;
    let mut http2 = gateway.http2().await;
    assert_eq!(http2.text("/", 1).await, "hello");
    until("the busy one", || gateway.proxy.guard().peers.lock().unwrap().len() == 3).await;
    let draining = tokio::spawn({
        let proxy = gateway.proxy.clone();
        async move { proxy.drain(BOUND).await }
    });
    assert!(idle.rest().await.is_empty());
    until("the connection's end", || !http2.is_open()).await;
    busy.send("bc").await;
    assert_eq!(busy.answer().await.unwrap().body, b"3 None");
    assert!(busy.rest().await.is_empty());
    drop((idle, busy, http2));
    assert_eq!(soon("the end", draining).await.unwrap(), 0);
}

#[tokio::test]
async fn a_drain_is_bounded() {
    let origin = Origin::new().await;
    let gateway = Gateway::new(&[("a.example", origin.address)]);
    let mut raw = gateway.raw().await;
    raw.send(get("/events", 1)).await;
    raw.head().await.unwrap();
    assert_eq!(soon("the end", gateway.proxy.drain(Duration::from_millis(50))).await, 1);
    raw.rest().await;
    until("the origin's connection's end", || origin.open() == 0).await;
}
