//! What was learned, for a gateway that runs: read by every request, added to by few.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::file::{LearnedError, LearnedFile};
use super::{Bounds, Entry, Learned};

/// [`Learned`] and its file. It never knows anything that is not on the disk: an answer that finds nothing new in it can
/// be sent.
///
/// ```text
/// let sealed = Sealing { learned: &keeper.read(), … }.outgoing(fields, deletions, now)?;
/// keeper.learn(sealed.news).await?;      // an error: this answer is not sent
/// ```
///
/// A thread of its own writes. What comes while it waits for the disk is written together with the next write, each
/// entry once; everybody who has asked for it waits for that write.
#[derive(Debug)]
pub struct Keeper {
    learned: Arc<RwLock<Learned>>,
    /// None only while it is dropped.
    news: Option<mpsc::Sender<News>>,
    writer: Option<JoinHandle<()>>,
}

/// Why an answer has to be kept back: what it teaches could not be made durable. Nothing of it is known then, and the
/// next answer tries again.
#[derive(Debug, Clone, thiserror::Error)]
pub enum NotKept {
    #[error("{0}: no answer is sent that sets a cookie of a new name or place, until that is mended")]
    Disk(Arc<LearnedError>),
    #[error("the thread that writes what was learned has ended: start the gateway again")]
    Ended,
}

/// What one answer teaches, and who waits for it.
#[derive(Debug)]
struct News {
    entries: Vec<Entry>,
    kept: oneshot::Sender<Result<(), NotKept>>,
}

/// So many answers wait in the queue; the next ones wait for a place in it.
const QUEUE: usize = 256;

impl Keeper {
    /// Reads the file, or makes it, as [`LearnedFile::open`] does. Blocks; to be called at the start.
    ///
    /// # Errors
    /// [`LearnedError`]
    pub fn open(path: &Path, bounds: Bounds) -> Result<Self, LearnedError> {
        let (mut file, learned) = LearnedFile::open(path, bounds)?;
        Self::start(learned, move |news, learned| file.add(news, learned))
    }

    /// `add`: comes back when these news are on the disk, where all that is learned is already.
    fn start(
        learned: Learned,
        add: impl FnMut(&[Entry], &Learned) -> Result<(), LearnedError> + Send + 'static,
    ) -> Result<Self, LearnedError> {
        let learned = Arc::new(RwLock::new(learned));
        let (news, come) = mpsc::channel(QUEUE);
        let shared = Arc::clone(&learned);
        let writer = std::thread::Builder::new()
            .name("learned".to_owned())
            .spawn(move || write(&shared, come, add))
            .map_err(|error| LearnedError::Thread(error.to_string()))?;
        Ok(Self { learned, news: Some(news), writer: Some(writer) })
    }

    /// What is known, and on the disk. Waits for nobody but for the moment in which what was written is taken in; not to
    /// be held over an `await`.
    pub fn read(&self) -> RwLockReadGuard<'_, Learned> {
        self.learned.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Comes back when these news ([`crate::web::sealing::Outgoing::news`]) are on the disk, at once where there are none.
    /// A caller that goes away meanwhile stops nothing.
    ///
    /// # Errors
    /// [`NotKept`]
    pub async fn learn(&self, news: Vec<Entry>) -> Result<(), NotKept> {
        if news.is_empty() {
            return Ok(());
        }
        let (kept, done) = oneshot::channel();
        let queue = self.news.as_ref().ok_or(NotKept::Ended)?;
        queue.send(News { entries: news, kept }).await.map_err(|_| NotKept::Ended)?;
        done.await.map_err(|_| NotKept::Ended)?
    }
}

impl Drop for Keeper {
    /// Waits until the last write is done, so that the file is closed.
    fn drop(&mut self) {
        self.news = None;
        if let Some(writer) = self.writer.take() {
            // it has nobody left to tell
            let _ = writer.join();
        }
    }
}

/// The writer's thread: ends with the last sender.
fn write(
    learned: &RwLock<Learned>,
    mut come: mpsc::Receiver<News>,
    mut add: impl FnMut(&[Entry], &Learned) -> Result<(), LearnedError>,
) {
    while let Some(first) = come.blocking_recv() {
        let mut asked = vec![first];
        while asked.len() < QUEUE
            && let Ok(next) = come.try_recv()
        {
            asked.push(next);
        }
        let done = keep(learned, asked.iter().flat_map(|news| &news.entries), &mut add);
        for News { kept, .. } in asked {
            // a client that has gone away does not hear of it
            let _ = kept.send(done.clone());
        }
    }
}

fn keep<'a>(
    learned: &RwLock<Learned>,
    entries: impl Iterator<Item = &'a Entry>,
    add: &mut impl FnMut(&[Entry], &Learned) -> Result<(), LearnedError>,
) -> Result<(), NotKept> {
    let news = {
        let known = learned.read().unwrap_or_else(PoisonError::into_inner);
        let mut seen = HashSet::new();
        let news: Vec<Entry> =
            entries.filter(|entry| known.is_news(entry) && seen.insert(*entry)).cloned().collect();
        if news.is_empty() {
            return Ok(());
        }
        // nobody else writes, so requests go on reading meanwhile
        add(&news, &known).map_err(|error| NotKept::Disk(Arc::new(error)))?;
        news
    };
    let mut known = learned.write().unwrap_or_else(PoisonError::into_inner);
    for entry in news {
        known.learn(entry);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc as blocking;

    use super::*;
    use crate::web::cookie::Folded;
    use crate::web::line_file::LineError;
    use crate::web::safe_file::FileError;
    use crate::web::seal::Group;

    fn sealed(name: &str) -> Entry {
        Entry::Sealed { group: Group::new("app").unwrap(), name: Folded::of(name.as_bytes()) }
    }

    fn knows(keeper: &Keeper, name: &str) -> bool {
        keeper.read().is_sealed(&Group::new("app").unwrap(), &Folded::of(name.as_bytes()))
    }

    /// A disk that says what it is asked to write, and does it when it is told how that went.
    struct Disk {
        asked: blocking::Receiver<Vec<Entry>>,
        answers: blocking::Sender<Result<(), LearnedError>>,
    }

    fn keeper() -> (Arc<Keeper>, Disk) {
        let (ask, asked) = blocking::channel();
        let (answers, answer) = blocking::channel();
        let keeper = Keeper::start(Learned::default(), move |news, _| {
            ask.send(news.to_vec()).unwrap();
            answer.recv().unwrap()
        });
        (Arc::new(keeper.unwrap()), Disk { asked, answers })
    }

    fn broken() -> LearnedError {
        let full = FileError::Failed { path: "/learned".into(), what: "No space left".into() };
        LearnedError::Lines(full.into())
    }

    type Waiting = tokio::task::JoinHandle<Result<(), NotKept>>;

    /// An answer that teaches these names, as far as it can go alone.
    async fn answer(keeper: &Arc<Keeper>, names: &[&str]) -> Waiting {
        let (keeper, news) = (Arc::clone(keeper), names.iter().map(|name| sealed(name)).collect());
        let waiting = tokio::spawn(async move { keeper.learn(news).await });
        // this runtime has one thread: when we run again, the other has come to where it waits
        tokio::task::yield_now().await;
        waiting
    }

    /// R5: nothing is known before it is on the disk, and nobody's answer goes out before.
    #[tokio::test]
    async fn r5_what_is_learned_is_known_when_it_is_on_the_disk_and_not_before() {
        let (keeper, disk) = keeper();
        let first = answer(&keeper, &["sid"]).await;
        assert_eq!(disk.asked.recv().unwrap(), [sealed("sid")]);
        assert!(!knows(&keeper, "sid") && !first.is_finished());
        // the second one teaches the same while the disk works: it waits as well
        let second = answer(&keeper, &["sid"]).await;
        assert!(!second.is_finished());
        disk.answers.send(Ok(())).unwrap();
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
        assert!(knows(&keeper, "sid"));
        assert!(disk.asked.try_recv().is_err(), "written once");
        keeper.learn(vec![]).await.unwrap();
        keeper.learn(vec![sealed("sid")]).await.unwrap();
        assert!(disk.asked.try_recv().is_err(), "what is known is no news");
    }

    #[tokio::test]
    async fn who_comes_while_the_disk_works_shares_the_next_write() {
        let (keeper, disk) = keeper();
        let first = answer(&keeper, &["one"]).await;
        disk.asked.recv().unwrap();
        let mut waiting = vec![first];
        for names in [&["two", "one"][..], &["three"], &["two"], &["three", "four"]] {
            waiting.push(answer(&keeper, names).await);
        }
        disk.answers.send(Ok(())).unwrap();
        assert_eq!(disk.asked.recv().unwrap(), [sealed("two"), sealed("three"), sealed("four")]);
        disk.answers.send(Ok(())).unwrap();
        for answer in waiting {
            answer.await.unwrap().unwrap();
        }
        assert!(["one", "two", "three", "four"].iter().all(|name| knows(&keeper, name)));
    }

    /// R5: an answer whose cookie could not be written down is not sent; the next one tries again.
    #[tokio::test]
    async fn r5_a_disk_that_fails_is_told_to_all_who_wait_and_teaches_nothing() {
        let (keeper, disk) = keeper();
        let mut waiting = vec![answer(&keeper, &["one"]).await];
        disk.asked.recv().unwrap();
        waiting.push(answer(&keeper, &["one"]).await);
        disk.answers.send(Err(broken())).unwrap();
        assert_eq!(disk.asked.recv().unwrap(), [sealed("one")], "the second tries again");
        disk.answers.send(Err(broken())).unwrap();
        for answer in waiting {
            let said = answer.await.unwrap().unwrap_err().to_string();
            assert!(said.starts_with("/learned: No space left: no answer is sent"), "{said}");
        }
        assert!(!knows(&keeper, "one"));
        let third = answer(&keeper, &["one"]).await;
        disk.asked.recv().unwrap();
        disk.answers.send(Ok(())).unwrap();
        third.await.unwrap().unwrap();
        assert!(knows(&keeper, "one"));
    }

    #[tokio::test]
    async fn a_client_that_goes_away_stops_nothing() {
        let (keeper, disk) = keeper();
        let gone = answer(&keeper, &["one"]).await;
        disk.asked.recv().unwrap();
        gone.abort();
        assert!(gone.await.unwrap_err().is_cancelled());
        disk.answers.send(Ok(())).unwrap();
        let other = answer(&keeper, &["two"]).await;
        disk.asked.recv().unwrap();
        disk.answers.send(Ok(())).unwrap();
        other.await.unwrap().unwrap();
        assert!(knows(&keeper, "one"));
    }

    #[tokio::test]
    async fn a_writer_that_is_gone_is_an_error_and_no_hang() {
        let (keeper, disk) = keeper();
        // as if it had panicked: the disk's other end is gone
        drop(disk);
        assert!(matches!(keeper.learn(vec![sealed("one")]).await, Err(NotKept::Ended)));
        assert!(matches!(keeper.learn(vec![sealed("one")]).await, Err(NotKept::Ended)));
    }

    #[tokio::test]
    async fn r5_after_a_restart_it_is_all_there() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("learned");
        let keeper = Keeper::open(&path, Bounds::default()).unwrap();
        keeper.learn(vec![sealed("one"), sealed("two")]).await.unwrap();
        assert!(matches!(
            Keeper::open(&path, Bounds::default()),
            Err(LearnedError::Lines(LineError::Busy { .. }))
        ));
        drop(keeper);
        let keeper = Keeper::open(&path, Bounds::default()).unwrap();
        assert!(knows(&keeper, "one") && knows(&keeper, "two") && !knows(&keeper, "three"));
    }
}
