//! Very many people, revoked on one gateway in one stream.

use std::time::{Duration, Instant};

use enforcer::control::{api, connect_control};

use super::{A, Gateways};
use crate::process::eventually;

/// In one message.
const BATCH: u32 = 500;

/// Revokes alice and so many people that nobody knows, on A: how long until all of it was answered, and until it was in force
/// on every gateway.
#[track_caller]
pub fn revoke_many(world: &Gateways, people: u32) -> (Duration, Duration) {
    let requests = |from: u32| {
        let people =
            (from..from + BATCH).map(|n| if n == 0 { "alice".to_owned() } else { format!("person{n}") });
        let target =
            |user| api::Target { what: Some(api::target::What::User(user)), ..api::Target::default() };
        let requests =
            people.map(|user| api::RevokeRequest { target: Some(target(user)), ..Default::default() });
        api::RevokeBatch { requests: requests.collect() }
    };
    let batches: Vec<_> = (0..people).step_by(BATCH as usize).map(requests).collect();
    let socket = world[A].enforcer.control_socket();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let begun = Instant::now();
    let receipt = runtime.block_on(async {
        let mut control = connect_control(&socket).await.expect("the control socket");
        control.revoke_many(futures::stream::iter(batches)).await.expect("an answer").into_inner()
    });
    let answered = begun.elapsed();
    assert_eq!((receipt.done, receipt.failed), (u64::from(people), 0), "{:?}", receipt.errors);
    eventually("all of it is in force everywhere", Duration::from_secs(300), || {
        let all = world[A].gateways();
        (world[A].letters() == 0 && all.len() == 3 && all.iter().all(|one| one.pending() == 0)).then_some(())
    });
    (answered, begun.elapsed())
}
