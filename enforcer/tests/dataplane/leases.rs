//! How long an entry stands.

use std::sync::Mutex;
use std::time::Duration;

use aya::maps::{Array, Map, MapData};
use enforcer::dataplane::{Dataplane, Role};
use enforcer::session::Stands;
use enforcer_ebpf::packed::TICK_NS;

use crate::lab::{GATEWAY, PEER, lab};
use crate::{attach, flow, insert, packets_by};

/// Keeps what the programs say.
struct Said(Mutex<Vec<String>>);

impl log::Log for Said {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }

    fn flush(&self) {}
}

static SAID: Said = Said(Mutex::new(Vec::new()));

#[test]
fn a_lease_lapses_without_a_heartbeat_and_the_programs_say_so() {
    log::set_logger(&SAID).unwrap();
    log::set_max_level(log::LevelFilter::Trace);
    lab(|lab| {
        let mut dataplane = lab.open();
        let mut logger = dataplane.logger().unwrap();
        attach(&mut dataplane, lab, "gw", Role::Outer);
        let (server, client) = (lab.here(&format!("{GATEWAY}:443")), lab.far(&format!("{PEER}:4000")));
        let entry = flow(lab.netns(), &client, &server);
        insert(&mut dataplane, &entry, Stands::Leased);
        assert!(client.reaches(&server), "there was no heartbeat yet");
        dataplane.beat().unwrap();
        assert!(!client.reaches(&server));

        let heartbeat = MapData::from_pin(lab.pin_path().join("maps/heartbeat")).unwrap();
        let mut heartbeat = Array::<_, u64>::try_from(Map::Array(heartbeat)).unwrap();
        let ago = |seconds: u64| Dataplane::kernel_monotonic_ns() - seconds * 1_000_000_000;
        heartbeat.set(0, ago(8), 0).unwrap();
        assert!(!client.reaches(&server));
        heartbeat.set(0, ago(11), 0).unwrap();
        assert!(client.reaches(&server));
        assert_eq!(packets_by(&dataplane, "passed-lapsed"), 2);
        assert_eq!(dataplane.hits(&entry), Some(2));

        logger.flush();
        let said = SAID.0.lock().unwrap().clone();
        assert!(said.iter().any(|text| text.contains("has not renewed the lease")), "{said:?}");

        drop((dataplane, logger));
        let mut dataplane = lab.open();
        assert!(dataplane.lapsed());
        dataplane.beat().unwrap();
        assert!(!client.reaches(&server));

        // a time of its own ends at its moment
        dataplane.remove(&entry).unwrap();
        insert(&mut dataplane, &entry, Stands::Until(Dataplane::kernel_monotonic_ns() + 400_000_000));
        assert!(!client.reaches(&server));
        std::thread::sleep(Duration::from_nanos(400_000_000 + TICK_NS));
        assert!(client.reaches(&server));
        assert_eq!(packets_by(&dataplane, "passed-expired"), 1);
        drop(dataplane);
        assert!(!lab.open().lapsed(), "it has just beaten");
    });
}
