//! The object, loaded once for each network namespace; all instances share the pinned maps.

use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::maps::Map;
use aya::programs::{ProgramError, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader, include_bytes_aligned};
use enforcer_ebpf::layout::{self, MAPS, OpenvpnPorts};
use enforcer_ebpf::packed::HashKeys;

use super::packed::buckets;
use super::pins::{Pins, exists};
use super::tables::SecretMap;
use super::{Capacities, shape, sys};
use crate::session::Netns;

/// Built by `build/bpf_object.rs`.
pub(super) static OBJECT: &[u8] = include_bytes_aligned!(concat!(env!("OUT_DIR"), "/enforcer.bpf.o"));

/// aya-log's ring buffer. Pinned so that all instances of this process speak into the same one; a new process
/// starts a new one, since the records of another version could not be read.
pub(super) const LOG: &str = "AYA_LOGS";

/// One loaded object: its programs are for one namespace.
pub(super) struct Instance(Ebpf);

impl Instance {
    /// Opens or makes the maps; the programs themselves go to the verifier when they are first needed.
    pub(super) fn load(
        pins: &Pins,
        capacities: &Capacities,
        openvpn: OpenvpnPorts,
        netns: Netns,
    ) -> Result<Self> {
        let (secret, new) = secret(&pins.maps)?;
        let (flows, addresses) = (buckets(capacities.flows), buckets(capacities.addresses));
        let mut loader = EbpfLoader::new();
        loader.override_global(layout::NETNS, &netns.0, true);
        loader.override_global(layout::HASH_SECRET, &secret, true);
        loader.override_global(layout::FLOW_BUCKET_COUNT, &flows, true);
        loader.override_global(layout::ADDRESS_BUCKET_COUNT, &addresses, true);
        loader.override_global(layout::OPENVPN_PORTS, &openvpn, true);
        for definition in &MAPS {
            loader.map_max_entries(definition.name, shape::entries(definition, capacities));
            loader.map_pin_path(definition.name, pins.maps.join(definition.name));
        }
        loader.map_pin_path(LOG, pins.log.clone());
        let loaded = loader.load(OBJECT).map(Self).context("cannot load the BPF object")?;
        if new {
            // before anything hangs anywhere that would hash by it
            SecretMap::open(&pins.maps)?.write(secret)?;
        }
        Ok(loaded)
    }

    /// The kernel's number of one of its maps.
    pub(super) fn map_id(&self, name: &str) -> Result<u32> {
        let map = self.0.map(name).with_context(|| format!("the BPF object has no map {name}"))?;
        let (Map::HashMap(map)
        | Map::LruHashMap(map)
        | Map::Array(map)
        | Map::PerCpuArray(map)
        | Map::RingBuf(map)) = map
        else {
            bail!("the BPF object has another kind of map for {name}");
        };
        sys::map_id(map.fd().as_fd()).with_context(|| format!("cannot look at the map {name}"))
    }

    pub(super) fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.0
    }

    pub(super) fn xdp(&mut self, name: &str) -> Result<&mut Xdp> {
        let program: &mut Xdp = self.0.program_mut(name).with_context(|| missing(name))?.try_into()?;
        if program.fd().is_err() {
            program.load().map_err(|error| refused(name, error))?;
        }
        Ok(program)
    }

    pub(super) fn classifier(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        let program: &mut SchedClassifier =
            self.0.program_mut(name).with_context(|| missing(name))?.try_into()?;
        if program.fd().is_err() {
            program.load().map_err(|error| refused(name, error))?;
        }
        Ok(program)
    }
}

/// The secret of the pinned tables, or a new one (`true`).
fn secret(maps: &Path) -> Result<(HashKeys, bool)> {
    if exists(&maps.join(layout::HASH_KEYS))? {
        let secret = SecretMap::open(maps)?.read()?;
        if secret != HashKeys::default() {
            return Ok((secret, false));
        }
    }
    let mut secret = HashKeys::default();
    for word in &mut secret {
        *word = sys::random().context("cannot get random bytes for the hash of the kernel's tables")?;
    }
    Ok((secret, true))
}

fn missing(name: &str) -> String {
    format!("the BPF object has no program {name}")
}

/// The verifier's log can be long; its end says why.
fn refused(name: &str, error: ProgramError) -> anyhow::Error {
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<&str> = log.lines().collect();
            let end = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
            anyhow!("the kernel refuses the program {name}: {io_error}; the end of what it says:\n{end}")
        }
        error => anyhow::Error::new(error).context(format!("cannot load the program {name}")),
    }
}
