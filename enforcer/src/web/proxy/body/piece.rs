//! A piece of an answer's body until it is written.

use std::sync::Arc;

use hyper::body::{Buf, Bytes};

use super::super::register::{Flight, Registered};

/// Bytes on their way through hyper to the client's socket. It tells its request how far they have come.
#[derive(Debug)]
pub(in super::super) struct Piece {
    bytes: Bytes,
    flight: Arc<Flight>,
    /// The session's end finds the request as long as a piece of it may still be written.
    _registered: Option<Arc<Registered>>,
}

/// What is written in the place of what must not be.
static NOTHING: [u8; 16 << 10] = [0; 16 << 10];

impl Piece {
    pub(super) fn new(bytes: Bytes, flight: &Arc<Flight>, registered: Option<Arc<Registered>>) -> Self {
        flight.gave();
        Self { bytes, flight: Arc::clone(flight), _registered: registered }
    }

    /// A frame of HTTP/2 that is half written has to come to its end, whatever is in it. The stream is reset behind it,
    /// so that nobody takes it for what it was to be.
    fn is_blank(&self) -> bool {
        self.flight.is_stream() && self.flight.is_ended()
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        if self.is_blank() {
            return &NOTHING[..self.bytes.len().min(NOTHING.len())];
        }
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.flight.writes();
        self.bytes.advance(count);
    }
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.flight.wrote();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_knows_of_its_pieces_until_they_are_written() {
        let flight = Flight::of_stream();
        let mut piece = Piece::new(Bytes::from_static(b"abc"), &flight, None);
        assert!(flight.has_unwritten());
        let before = flight.waits_for_client();
        assert!(before.is_some());
        piece.advance(1);
        assert_eq!(piece.chunk(), b"bc");
        assert_ne!(flight.waits_for_client(), before);
        drop(piece);
        assert!(!flight.has_unwritten());
    }
}
