//! A time in which something has to move, cheap where something does.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// Runs out when nothing has moved for the time, at the latest for twice the time: a move only makes a note, so that
/// the runtime's timer is set once for many of them.
#[derive(Debug)]
pub(in super::super) struct Idle {
    time: Duration,
    moved: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    pub(in super::super) fn new(time: Duration) -> Self {
        Self { time, moved: false, timer: None }
    }

    /// Something has moved.
    pub(in super::super) fn moved(&mut self) {
        self.moved = true;
    }

    /// Whether the time is over; if not, the task is woken when it might be. To be asked while nothing moves.
    pub(in super::super) fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        let timer = match &mut self.timer {
            Some(timer) => timer,
            None => {
                self.moved = false;
                self.timer.insert(Box::pin(sleep(self.time)))
            }
        };
        while timer.as_mut().poll(cx) == Poll::Ready(()) {
            if !std::mem::take(&mut self.moved) {
                return true;
            }
            // a time that no clock can hold never runs out
            let Some(deadline) = Instant::now().checked_add(self.time) else { return false };
            timer.as_mut().reset(deadline);
        }
        false
    }
}
