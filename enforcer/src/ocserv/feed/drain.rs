//! TOP's socket is read by a task of its own, which waits for nobody; what it reads is bounded.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::ocserv::client::ClientError;
use crate::ocserv::frame::{Command, FrameReader, TOP_EVENT};
use crate::ocserv::messages::{self, Event, Listing};

/// How many events may wait for a slow consumer. Beyond that they are dropped, and one fresh list says the same.
const BUFFERED: usize = 4096;

/// What the reader has taken from the socket, and nobody has taken from it.
#[derive(Default)]
pub(super) struct Buffer {
    pub(super) items: VecDeque<Item>,
    /// Items were dropped: only a list counts next.
    pub(super) overflowed: bool,
    /// Nothing comes any more.
    pub(super) ended: Option<ClientError>,
}

pub(super) enum Item {
    Event(Event),
    List(Listing),
}

impl Buffer {
    pub(super) fn push(&mut self, item: Item) {
        match item {
            // a list says all that came before it; what was dropped is made up for
            Item::List(_) if self.overflowed => {
                self.overflowed = false;
                self.items.clear();
            }
            Item::List(_) => {
                // one list at most is kept: the newest
                self.items.retain(|item| matches!(item, Item::Event(_)));
            }
            Item::Event(_) if self.overflowed => return,
            Item::Event(_) if self.items.len() >= BUFFERED => {
                self.items.clear();
                self.overflowed = true;
                return;
            }
            Item::Event(_) => {}
        }
        self.items.push_back(item);
    }
}

#[derive(Default)]
pub(super) struct Shared {
    pub(super) buffer: Mutex<Buffer>,
    pub(super) filled: Notify,
}

impl Shared {
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut Buffer) -> T) -> T {
        act(&mut self.buffer.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The task that drains the socket; it ends with its owner.
pub(super) struct Drain(JoinHandle<()>);

impl Drop for Drain {
    fn drop(&mut self) {
        self.0.abort();
    }
}

pub(super) fn drain<R>(mut reader: FrameReader<R>, shared: Arc<Shared>) -> Drain
where
    R: tokio::io::AsyncRead + Unpin + Send + 'static,
{
    Drain(tokio::spawn(async move {
        let command = Command::Top;
        let end = loop {
            let frame = match reader.next().await {
                Ok(Some(frame)) => frame,
                Ok(None) => break ClientError::NoReply(command),
                Err(source) => break ClientError::Frame { command, source },
            };
            let items = if frame.command == command.reply() {
                messages::listing(&frame.body).map(|listing| vec![Item::List(listing)])
            } else if frame.command == TOP_EVENT {
                messages::events(&frame.body).map(|events| events.into_iter().map(Item::Event).collect())
            } else {
                break ClientError::WrongReply { command, got: frame.command };
            };
            match items {
                Ok(items) => shared.with(|buffer| items.into_iter().for_each(|item| buffer.push(item))),
                Err(source) => break ClientError::Garbage { command, source },
            }
            shared.filled.notify_one();
        };
        shared.with(|buffer| buffer.ended = Some(end));
        shared.filled.notify_one();
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Observed;

    fn connected(id: i32) -> Item {
        Item::Event(Event::Connected { observed: Observed { id, ..Default::default() } })
    }

    #[test]
    fn a_full_buffer_drops_events_until_the_next_list() {
        let mut buffer = Buffer::default();
        for id in 0..=BUFFERED as i32 {
            buffer.push(connected(id));
        }
        assert!(buffer.overflowed);
        assert!(buffer.items.is_empty());
        buffer.push(Item::Event(Event::Other));
        assert!(buffer.items.is_empty());
        buffer.push(Item::List(Listing::default()));
        buffer.push(Item::Event(Event::Other));
        assert!(!buffer.overflowed);
        assert_eq!(buffer.items.len(), 2);
    }
}
