//! Many people, revoked on one gateway in one stream.

use std::path::Path;
use std::time::{Duration, Instant};

use enforcer::control::{api, connect_control};

use super::{A, Gateways};
use crate::process::eventually;

/// In one message.
const BATCH: usize = 500;

/// So many in one message.
#[track_caller]
pub fn revoke_all(socket: &Path, names: &[String], at_once: usize) {
    let request = |user: &String| {
        let target =
            api::Target { what: Some(api::target::What::User(user.clone())), ..api::Target::default() };
        api::RevokeRequest { target: Some(target), ..Default::default() }
    };
    let batches: Vec<_> = (names.chunks(at_once))
        .map(|names| api::RevokeBatch { requests: names.iter().map(request).collect() })
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let receipt = runtime.block_on(async {
        let mut control = connect_control(socket).await.expect("the control socket");
        control.revoke_many(futures::stream::iter(batches)).await.expect("an answer").into_inner()
    });
    assert_eq!((receipt.done, receipt.failed), (names.len() as u64, 0), "{:?}", receipt.errors);
}

/// Revokes alice and so many people that nobody knows, on A: how long until all of it was answered, and until it was in force
/// on every gateway.
#[track_caller]
pub fn revoke_many(world: &Gateways, people: u32) -> (Duration, Duration) {
    let names: Vec<String> =
        (0..people).map(|n| if n == 0 { "alice".to_owned() } else { format!("person{n}") }).collect();
    let begun = Instant::now();
    revoke_all(&world[A].enforcer.control_socket(), &names, BATCH);
    let answered = begun.elapsed();
    eventually("all of it is in force everywhere", Duration::from_secs(300), || {
        let all = world[A].gateways();
        (world[A].letters() == 0 && all.len() == 3 && all.iter().all(|one| one.pending() == 0)).then_some(())
    });
    (answered, begun.elapsed())
}
