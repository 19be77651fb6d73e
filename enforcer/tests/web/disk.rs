//! What was learned, on a disk that is full: a thread with a mount namespace of its own, and a small file system in it.

use std::fs::{self, File};
use std::io::Write as _;

use enforcer::web::cookie::Folded;
use enforcer::web::learned::{Bounds, Entry, Keeper, NotKept};
use enforcer::web::sealing::Why;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::world::{World, group};

fn sealed(name: &str) -> Entry {
    Entry::Sealed { group: group("app"), name: Folded::of(name.as_bytes()) }
}

/// R5: what cannot be written down is not known, and said; when there is room again it goes on, and what was answered for
/// is there after a restart.
#[test]
fn r5_a_full_disk_holds_back_what_it_cannot_keep() {
    // it goes when the thread is gone, and its mount with it
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_owned();
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNS).expect("a mount namespace: this test needs root");
        mount::<_, _, str, str>(None::<&str>, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)
            .unwrap();
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("mode=0700,size=64k")).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (file, filler) = (path.join("learned"), path.join("filler"));
        let keeper = Keeper::open(&file, Bounds::default()).unwrap();
        let knows = |keeper: &Keeper, name: &str| {
            keeper.read().is_sealed(&group("app"), &Folded::of(name.as_bytes()))
        };
        runtime.block_on(keeper.learn(vec![sealed("before")])).unwrap();
        for round in ["one", "two"] {
            let mut fill = File::create(&filler).unwrap();
            for size in [4096, 1] {
                while fill.write_all(&vec![0; size]).is_ok() {}
            }
            drop(fill);
            // what is left of the page that the file has already
            let fits = (0..200).map(|number| format!("{round}-{number}"));
            let failed = fits
                .map(|name| (runtime.block_on(keeper.learn(vec![sealed(&name)])), name))
                .find(|(kept, _)| kept.is_err());
            let (Err(why), name) = failed.unwrap() else { unreachable!() };
            assert!(matches!(why, NotKept::Disk(_)) && why.to_string().contains("No space left"), "{why}");
            assert!(!knows(&keeper, &name));
            runtime.block_on(keeper.learn(vec![sealed("before")])).unwrap();
            fs::remove_file(&filler).unwrap();
            runtime.block_on(keeper.learn(vec![sealed(&name), sealed(round)])).unwrap();
            assert!(knows(&keeper, &name) && knows(&keeper, round));
        }
        drop(keeper);
        let keeper = Keeper::open(&file, Bounds::default()).unwrap();
        assert!(["before", "one", "one-0", "two", "two-0"].iter().all(|name| knows(&keeper, name)));
        // and a planted cookie of such a name passes no more
        let mut world = World::new();
        let entries: Vec<Entry> = keeper.read().entries().collect();
        world.learn(&entries);
        assert_eq!(world.got("two=planted").1, [Why::Unsealed]);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}
