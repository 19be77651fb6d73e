//! A client that does not give up: it tries its cookie again and again while something else happens.

use std::sync::atomic::{AtomicBool, Ordering};

use super::Gateways;
use crate::client::{Client, Cookie, Outcome};
use crate::clock::Moment;

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub struct Tried {
    pub begun: Moment,
    pub ended: Moment,
    pub up: bool,
}

/// None of the attempts that were begun after `time` was let in, and there were some.
#[track_caller]
pub fn none_let_in(tries: &[Tried], time: Moment) {
    let later: Vec<_> = tries.iter().filter(|tried| tried.begun > time).collect();
    assert!(!later.is_empty(), "no attempt was made after that, of {}", tries.len());
    let up = later.iter().filter(|tried| tried.up).count();
    assert!(up == 0, "{up} of {} later attempts were let in", later.len());
}

/// Stops the hammer also when what it accompanies fails.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Does `work` while `client` tries `cookie` at the gateway `place` without a pause. What came of each attempt.
pub fn hammered<T>(
    world: &Gateways,
    (client, place, cookie): (&Client, usize, &Cookie),
    work: impl FnOnce() -> T,
) -> (T, Vec<Tried>) {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let hammer = scope.spawn(|| {
            let mut tries = Vec::new();
            while !stop.load(Ordering::SeqCst) {
                let begun = Moment::now();
                let up = match world.tried(client, place, cookie) {
                    Outcome::Up(tunnel) => {
                        tunnel.kill();
                        true
                    }
                    Outcome::Refused { .. } => false,
                    // the server said yes, whatever came then
                    Outcome::Failed { log } => log.contains(super::LET_IN),
                };
                tries.push(Tried { begun, ended: Moment::now(), up });
            }
            tries
        });
        let result = {
            let _stop = Stop(&stop);
            work()
        };
        (result, hammer.join().expect("a hammer"))
    })
}
