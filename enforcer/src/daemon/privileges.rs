//! Least privilege: what the setup needed and the loop does not is given up.

use anyhow::Context as _;
use caps::{CapSet, Capability, CapsHashSet};

/// What the loop needs, and why.
const KEPT: [Capability; 8] = [
    // maps and programs of tunnel devices that appear later
    Capability::CAP_BPF,
    Capability::CAP_PERFMON,
    // XDP and tc attachments, SOCK_DESTROY
    Capability::CAP_NET_ADMIN,
    // setns into a container's network namespace
    Capability::CAP_SYS_ADMIN,
    // a worker's sockets: /proc/PID/fd and pidfd_getfd
    Capability::CAP_SYS_PTRACE,
    // a worker that hangs
    Capability::CAP_KILL,
    // the occtl socket of an ocserv that runs as somebody else, and its configuration
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
];

/// Of this thread, and of every thread that it starts from here on.
pub(super) fn drop_the_rest() -> anyhow::Result<()> {
    let kept: CapsHashSet = KEPT.into_iter().collect();
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).with_context(|| format!("{set:?}"))?;
    }
    for capability in caps::all() {
        if !kept.contains(&capability) {
            // an older kernel does not know the newest ones
            let _ = caps::drop(None, CapSet::Bounding, capability);
        }
    }
    let had = caps::read(None, CapSet::Permitted).context("permitted")?;
    let left: CapsHashSet = had.intersection(&kept).copied().collect();
    caps::set(None, CapSet::Effective, &left).context("effective")?;
    caps::set(None, CapSet::Permitted, &left).context("permitted")?;
    Ok(())
}
