//! Why a packet was dropped, or passed although something was to be said of it.

/// One counter on one CPU. Sums over all CPUs are what people see.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Count {
    pub packets: u64,
    pub bytes: u64,
}

/// The index into the map of counters. New reasons go to the end; their number is part of the ABI.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Reason {
    /// XDP: an exact outer flow.
    DroppedFlow = 0,
    /// XDP: the session id of a DTLS ClientHello or of an OpenVPN control packet; or OpenVPN's data on a flow that has
    /// shown that id last.
    DroppedToken = 1,
    /// tc on a tunnel device: anything that came from it.
    DroppedDeviceIn = 2,
    /// tc on a tunnel device: anything that went to it.
    DroppedDeviceOut = 3,
    /// A revoked client's address as source: it came from the tunnel, or was about to leave towards the LAN.
    DroppedAddressFrom = 4,
    /// A revoked client's address as destination: it came from the LAN, or was about to go into the tunnel.
    DroppedAddressTo = 5,
    /// Passed: the entry is leased, and the daemon has not renewed the lease.
    PassedLapsed = 6,
    /// Passed: the entry's time is over.
    PassedExpired = 7,
    /// Passed: the frame ends within a header that we have to read.
    PassedCutOff = 8,
    /// Passed: more than two VLAN tags, or more than [`crate::packet::EXTENSION_HEADERS`] IPv6 extension headers.
    PassedTooDeep = 9,
    /// XDP: a later fragment of a datagram whose first fragment was just dropped, or a first fragment that leaves
    /// to the next one what has to be read.
    DroppedFragment = 10,
    /// XDP: an ICMP error about an exact outer flow.
    DroppedError = 11,
}

/// How many reasons there are.
pub const REASONS: usize = 12;

/// How many the maps have room for, so that a new reason is no new layout.
pub const SLOTS: usize = 32;
const _: () = assert!(REASONS <= SLOTS);

impl Reason {
    pub const ALL: [Self; REASONS] = [
        Self::DroppedFlow,
        Self::DroppedToken,
        Self::DroppedDeviceIn,
        Self::DroppedDeviceOut,
        Self::DroppedAddressFrom,
        Self::DroppedAddressTo,
        Self::PassedLapsed,
        Self::PassedExpired,
        Self::PassedCutOff,
        Self::PassedTooDeep,
        Self::DroppedFragment,
        Self::DroppedError,
    ];

    /// The name in metrics and in `show status`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::DroppedFlow => "dropped-flow",
            Self::DroppedToken => "dropped-token",
            Self::DroppedDeviceIn => "dropped-device-in",
            Self::DroppedDeviceOut => "dropped-device-out",
            Self::DroppedAddressFrom => "dropped-address-from",
            Self::DroppedAddressTo => "dropped-address-to",
            Self::PassedLapsed => "passed-lapsed",
            Self::PassedExpired => "passed-expired",
            Self::PassedCutOff => "passed-cut-off",
            Self::PassedTooDeep => "passed-too-deep",
            Self::DroppedFragment => "dropped-fragment",
            Self::DroppedError => "dropped-icmp-error",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_its_index() {
        for (index, reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
