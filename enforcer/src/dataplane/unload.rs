//! Takes everything out of the kernel, on request alone.

use std::fs;
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::hooks::{How, Pin};
use super::pins::Pins;
use super::{Dataplane, remove_if_there};

/// What [`Dataplane::unload`] took out.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Report {
    /// XDP and tcx programs.
    pub links: usize,
    /// clsact filters. The clsact qdisc itself stays.
    pub filters: usize,
    pub maps: usize,
    /// What could not be taken out, and why.
    pub left: Vec<String>,
}

impl Dataplane {
    /// Takes everything out: programs, filters, maps and folders. Revoked packets pass from then on. The bpffs
    /// stays mounted, and a clsact qdisc stays in place, since others may use them. No daemon may be running.
    ///
    /// # Errors
    /// The folder of pins cannot be read. What else fails is in the report.
    pub fn unload(pin_path: &Path) -> Result<Report> {
        let pins = Pins::below(pin_path);
        let mut report = Report::default();
        for pin in Pin::all(&pins.links)? {
            match pin.take_out(&pins.links) {
                Ok(()) if pin.how == How::Clsact => report.filters += 1,
                Ok(()) => report.links += 1,
                Err(error) => report.left.push(format!("{error:#}")),
            }
        }
        // also what a migration that was cut short has left
        for set in [&pins.next, &pins.last, &pins.maps] {
            for map in fs::read_dir(set).into_iter().flatten().flatten() {
                match fs::remove_file(map.path()) {
                    Ok(()) => report.maps += usize::from(*set == pins.maps),
                    Err(error) => report.left.push(format!("{}: {error}", map.path().display())),
                }
            }
        }
        let removed = [remove_if_there(&pins.log)].into_iter().chain(
            [&pins.next, &pins.last, &pins.links, &pins.maps, &pins.root]
                .map(|folder| remove_folder_if_there(folder)),
        );
        report.left.extend(removed.filter_map(Result::err).map(|error| format!("{error:#}")));
        Ok(report)
    }
}

fn remove_folder_if_there(path: &Path) -> Result<()> {
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("cannot remove {}", path.display())),
    }
}
