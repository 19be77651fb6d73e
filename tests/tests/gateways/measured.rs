//! R7, and how fast it is, printed and not asserted: `cargo test --release -p enforcer-tests --test gateways measured --
//! --nocapture`.

use std::time::{Duration, Instant};

use enforcer::control::{api, connect_control};
use enforcer_tests::gateways::{A, B, C, Gateways};
use enforcer_tests::process::eventually;

const PEOPLE: u32 = 10_000;
/// In one message.
const BATCH: u32 = 500;

/// R7: ten thousand people are revoked on A in one stream: all of it is in force everywhere, and none of it is lost. Afterwards
/// a login on C is let in, and whoever was among them has to be new.
#[test]
fn r7_measured_very_many_are_revoked_at_once() {
    let mut world = Gateways::new("gws-many");
    let client = world.lab.client("client");
    let mut session = world.session(C, &client, "alice");
    let requests = |from: u32| {
        let people =
            (from..from + BATCH).map(|n| if n == 0 { "alice".to_owned() } else { format!("person{n}") });
        let target =
            |user| api::Target { what: Some(api::target::What::User(user)), ..api::Target::default() };
        let requests =
            people.map(|user| api::RevokeRequest { target: Some(target(user)), ..Default::default() });
        api::RevokeBatch { requests: requests.collect() }
    };
    let batches: Vec<_> = (0..PEOPLE).step_by(BATCH as usize).map(requests).collect();
    let socket = world[A].enforcer.control_socket();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let begun = Instant::now();
    let receipt = runtime.block_on(async {
        let mut control = connect_control(&socket).await.unwrap();
        control.revoke_many(futures::stream::iter(batches)).await.unwrap().into_inner()
    });
    let answered = begun.elapsed();
    assert_eq!((receipt.done, receipt.failed), (u64::from(PEOPLE), 0), "{:?}", receipt.errors);
    eventually("all of it is in force everywhere", Duration::from_secs(300), || {
        let all = world[A].gateways();
        (world[A].letters() == 0 && all.len() == 3 && all.iter().all(|one| one.pending() == 0)).then_some(())
    });
    let everywhere = begun.elapsed();
    let rate = |time: Duration| f64::from(PEOPLE) / time.as_secs_f64();
    eprintln!(
        "{PEOPLE} revocations of people on one gateway: {:.0}/s answered, {:.0}/s in force on all three",
        rate(answered),
        rate(everywhere)
    );
    let stored = world.stored();
    let told = stored.keys().filter(|key| key.starts_with("from/") && key.contains("/users/")).count();
    assert_eq!(told, PEOPLE as usize, "each of them has a key");
    world.ends(&mut session);
    world.refused(&client, C, &session.cookie);
    world.session(B, &client, "alice");
}
