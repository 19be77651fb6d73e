//! The frame of the occtl socket, both ways: `u8 command | u32 length, native endian | protobuf`
//! (`send_msg` and `recv_msg_data` in ocserv's `src/common/common.c`).

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// A request's body: main reads it into `uint8_t buffer[256]` (`ctl_cmd_wacher_cb` in `src/main-ctl-unix.c`) and
/// closes the connection on a longer one.
pub const MAX_REQUEST: usize = 256;
/// A reply's body: some hundred thousand sessions. More is not ocserv.
pub const MAX_REPLY: usize = 64 << 20;

const HEADER: usize = 5;

/// The requests that the enforcer makes, by their numbers (`src/occtl/ctl.h`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Command {
    Status,
    List,
    IdInfo,
    DisconnectName,
    DisconnectId,
    ListBanned,
    UnbanIp,
    Top,
    ListCookies,
    /// From 1.4.2 on, like the other two.
    TerminateUser,
    TerminateId,
    TerminateSession,
}

/// What an event of TOP comes as.
pub(super) const TOP_EVENT: u8 = 109;

impl Command {
    pub fn number(self) -> u8 {
        match self {
            Self::Status => 1,
            Self::List => 4,
            Self::IdInfo => 6,
            Self::DisconnectName => 7,
            Self::DisconnectId => 8,
            Self::ListBanned => 9,
            Self::UnbanIp => 10,
            Self::Top => 11,
            Self::ListCookies => 12,
            Self::TerminateUser => 13,
            Self::TerminateId => 14,
            Self::TerminateSession => 15,
        }
    }

    /// The number of its reply, as 1.1.6, 1.3.0 and 1.5.0 were seen to answer (111 to 113: 1.5.0).
    pub fn reply(self) -> u8 {
        match self {
            Self::Status => 101,
            Self::List | Self::IdInfo | Self::Top => 104,
            Self::DisconnectName => 105,
            Self::DisconnectId => 106,
            Self::UnbanIp => 107,
            Self::ListBanned => 108,
            Self::ListCookies => 110,
            Self::TerminateUser => 111,
            Self::TerminateId => 112,
            Self::TerminateSession => 113,
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub command: u8,
    pub body: Vec<u8>,
}

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the request is {0} bytes long, and ocserv takes at most {MAX_REQUEST}")]
    RequestTooLong(usize),
    #[error("a reply that claims {0} bytes: this is not ocserv's occtl socket")]
    ReplyTooLong(u32),
    #[error("the reply ended after {have} of {want} bytes")]
    Truncated { have: usize, want: usize },
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A request, header and body in one: main takes the header with one read.
pub fn encode(command: u8, body: &[u8]) -> Result<Vec<u8>, FrameError> {
    let too_long = |_| FrameError::RequestTooLong(body.len());
    if body.len() > MAX_REQUEST {
        return Err(FrameError::RequestTooLong(body.len()));
    }
    let mut frame = Vec::with_capacity(HEADER + body.len());
    frame.push(command);
    frame.extend_from_slice(&u32::try_from(body.len()).map_err(too_long)?.to_ne_bytes());
    frame.extend_from_slice(body);
    Ok(frame)
}

/// The command and the body's length, once the header is there.
fn header(bytes: &[u8]) -> Result<Option<(u8, usize)>, FrameError> {
    let Some([command, a, b, c, d]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
    let length = u32::from_ne_bytes([*a, *b, *c, *d]);
    match usize::try_from(length) {
        Ok(length) if length <= MAX_REPLY => Ok(Some((*command, length))),
        _ => Err(FrameError::ReplyTooLong(length)),
    }
}

/// Reads frames. Keeps what it has: a caller may drop a `next` that is under way and ask again.
/// Memory grows with what has arrived, not with what a header claims.
#[derive(Debug)]
pub(super) struct FrameReader<R> {
    from: R,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub fn new(from: R) -> Self {
        Self { from, buffer: Vec::new() }
    }

    /// The next frame; None if the other side closed between two frames.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            let want = match header(&self.buffer)? {
                Some((command, length)) if self.buffer.len() >= HEADER + length => {
                    let rest = self.buffer.split_off(HEADER + length);
                    let mut body = std::mem::replace(&mut self.buffer, rest);
                    body.drain(..HEADER);
                    return Ok(Some(Frame { command, body }));
                }
                Some((_, length)) => HEADER + length,
                None => HEADER,
            };
            if self.from.read_buf(&mut self.buffer).await? == 0 {
                return match self.buffer.len() {
                    0 => Ok(None),
                    have => Err(FrameError::Truncated { have, want }),
                };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(bytes: &[u8]) -> (Vec<Frame>, Option<FrameError>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut reader = FrameReader::new(bytes);
            let mut frames = Vec::new();
            loop {
                match reader.next().await {
                    Ok(Some(frame)) => frames.push(frame),
                    Ok(None) => return (frames, None),
                    Err(error) => return (frames, Some(error)),
                }
            }
        })
    }

    #[test]
    fn a_frame_is_written_as_ocserv_reads_it() {
        let bytes = encode(7, b"ab").unwrap();
        assert_eq!(bytes[0], 7);
        assert_eq!(bytes[1..5], 2u32.to_ne_bytes());
        assert_eq!(&bytes[5..], b"ab");
        assert!(encode(7, &[0; MAX_REQUEST]).is_ok());
        assert!(matches!(encode(7, &[0; MAX_REQUEST + 1]), Err(FrameError::RequestTooLong(257))));
    }

    #[test]
    fn a_claim_is_not_believed() {
        let mut huge = vec![104];
        huge.extend_from_slice(&u32::MAX.to_ne_bytes());
        assert!(matches!(read_all(&huge).1, Some(FrameError::ReplyTooLong(u32::MAX))));
        let mut short = encode(104, b"abcd").unwrap();
        short.pop();
        assert!(matches!(read_all(&short).1, Some(FrameError::Truncated { have: 8, want: 9 })));
        assert!(matches!(read_all(&[104]).1, Some(FrameError::Truncated { have: 1, want: 5 })));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(frames in proptest::collection::vec((any::<u8>(), proptest::collection::vec(any::<u8>(), 0..MAX_REQUEST)), 0..6)) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(command, body)| encode(*command, body).unwrap()).collect();
            let (read, error) = read_all(&bytes);
            prop_assert!(error.is_none());
            prop_assert_eq!(read.into_iter().map(|frame| (frame.command, frame.body)).collect::<Vec<_>>(), frames);
        }

        #[test]
        fn any_bytes_are_frames_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let (frames, error) = read_all(&bytes);
            let read: usize = frames.iter().map(|frame| HEADER + frame.body.len()).sum();
            prop_assert!(read == bytes.len() || error.is_some());
        }
    }
}
