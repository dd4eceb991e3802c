//! Connections of ours that hosts may still believe in after we are gone, written down for the next run.
//!
//! A process that is killed, or whose machine loses power, while nothing gets through to a host leaves an sshd there that
//! holds our port, perhaps for hours. It may be ended by whoever knows for certain that it is dead: the process that had
//! the connection has ended. So each process keeps one file, locked for as long as it lives; a file that can be locked is
//! that of a dead one. Locks of files that machines share are not trusted beyond this machine.
//!
//! What cannot be written is not remembered, and then only the next run's port is another one.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tracing::debug;

use crate::{
    private_fs::{self, Lock},
    random,
    remote::stale::Grave,
};

/// The connections of one process, and of those that have died.
#[derive(Debug)]
pub(crate) struct Graveyard {
    directory: PathBuf,
    tunnels: AtomicU64,
    page: Mutex<Option<Page>>,
}

/// The file of this process.
#[derive(Debug)]
struct Page {
    path: PathBuf,
    lock: Lock,
    /// The lines that say something.
    used: BTreeSet<u64>,
}

/// Where one tunnel writes its connection down, in place of the one before.
#[derive(Debug)]
pub(super) struct Plot {
    yard: Arc<Graveyard>,
    number: u64,
}

impl Graveyard {
    /// Keeps track below `directory`, the one for our state. Nothing is made there yet.
    pub(crate) fn new(directory: &Path) -> Arc<Self> {
        let directory = directory.join("connections");
        Arc::new(Self { directory, tunnels: AtomicU64::new(0), page: Mutex::new(None) })
    }

    /// Returns a place for one more tunnel.
    pub(super) fn plot(self: &Arc<Self>) -> Plot {
        // The first line says whose file it is.
        let number = self.tunnels.fetch_add(1, Ordering::Relaxed) + 1;
        Plot { yard: Arc::clone(self), number }
    }

    /// Returns the connections to the server of this host key that processes which have ended here had.
    pub(super) fn dead(&self, fingerprint: &str) -> Vec<Grave> {
        let Some(machine) = machine() else { return Vec::new() };
        let mut graves = Vec::new();
        for path in pages(&self.directory) {
            // Ours is locked as well.
            let Ok(_lock) = private_fs::lock(&path, Duration::ZERO) else { continue };
            let Ok(Some(bytes)) = private_fs::read(&path) else { continue };
            let mut lines = bytes.chunks_exact(LINE).filter_map(|line| std::str::from_utf8(line).ok());
            if lines.next().map(str::trim_end) != Some(machine.as_str()) {
                continue;
            }
            let dead = lines.filter_map(|line| line.trim_end().split_once(' '));
            graves.extend(
                dead.filter(|(key, _)| *key == fingerprint).filter_map(|(_, grave)| Grave::parse(grave)),
            );
        }
        graves
    }

    fn write(&self, number: u64, text: &str) {
        let mut page = self.page();
        if page.is_none() && !text.is_empty() {
            *page = open(&self.directory)
                .inspect_err(|error| debug!(%error, "connections are not remembered beyond this process"))
                .ok();
        }
        let Some(page) = page.as_mut() else { return };
        if text.is_empty() && !page.used.contains(&number) {
            return;
        }
        match page.lock.write_at(&line(text), number * LINE as u64) {
            Ok(()) if text.is_empty() => drop(page.used.remove(&number)),
            Ok(()) => drop(page.used.insert(number)),
            Err(error) => debug!(%error, "a connection is not remembered beyond this process"),
        }
    }

    fn page(&self) -> MutexGuard<'_, Option<Page>> {
        self.page.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Graveyard {
    fn drop(&mut self) {
        let page = self.page().take();
        if let Some(Page { path, used, .. }) = &page
            && used.is_empty()
        {
            // Best effort: it says nothing.
            drop(private_fs::remove(path));
        }
    }
}

impl Plot {
    /// Writes down the connection of the tunnel to the server of this host key; `None` for one that cannot be told from
    /// others.
    pub(super) fn mark(&self, fingerprint: &str, grave: Option<&Grave>) {
        let text = grave.map(|grave| format!("{fingerprint} {}", grave.text())).unwrap_or_default();
        // Not cut, as the name of the host comes last.
        self.yard.write(self.number, if text.len() < LINE { &text } else { "" });
    }

    /// Forgets the connection, which the host knows to be over.
    pub(super) fn clear(&self) {
        self.yard.write(self.number, "");
    }
}

/// Makes a file for this process, and room for it.
fn open(directory: &Path) -> Result<Page, private_fs::Error> {
    let io = |source| private_fs::Error::Io { verb: "create", path: directory.to_owned(), source };
    let machine = machine().ok_or_else(|| io(std::io::ErrorKind::Unsupported.into()))?;
    private_fs::create_directory(directory)?;
    forget_oldest(directory);
    let mut digits = [0; 8];
    random::fill(&mut digits).map_err(|error| io(std::io::Error::other(error)))?;
    let path = directory.join(format!("{:016x}", u64::from_ne_bytes(digits)));
    let lock = private_fs::create_locked(&path)?;
    let page = Page { path, lock, used: BTreeSet::new() };
    page.lock.write_at(&line(&machine), 0).map_err(io)?;
    Ok(page)
}

/// Removes the files of the processes that died first, where there are many.
fn forget_oldest(directory: &Path) {
    let mut aged: Vec<_> = pages(directory)
        .into_iter()
        .filter_map(|path| Some((std::fs::symlink_metadata(&path).ok()?.modified().ok()?, path)))
        .collect();
    aged.sort();
    for (_, path) in aged.iter().rev().skip(MOST_PAGES) {
        if private_fs::lock(path, Duration::ZERO).is_ok() {
            drop(private_fs::remove(path));
        }
    }
}

fn pages(directory: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let ours = |name: &[u8]| name.len() == 16 && name.iter().all(u8::is_ascii_hexdigit);
    let named = entries.flatten().filter(|entry| ours(entry.file_name().as_encoded_bytes()));
    named.map(|entry| entry.path()).take(MOST_ENTRIES).collect()
}

/// Returns what tells this machine from others that share its home; it stays the same when the machine starts anew.
fn machine() -> Option<String> {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let text = format!("{} {name}", id.trim());
    (text.len() < LINE).then_some(text)
}

fn line(text: &str) -> Vec<u8> {
    let mut line = text.as_bytes().to_vec();
    line.resize(LINE - 1, b' ');
    line.push(b'\n');
    line
}

/// A fingerprint of 50 bytes, two numbers, the id of a start, and a name of at most 64 on Linux: with room to spare.
const LINE: usize = 256;

/// So many dead processes are remembered. Most of what they had is long over: TCP's own keepalives need two hours.
const MOST_PAGES: usize = 64;

/// More files than this are not ours to look at.
const MOST_ENTRIES: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn grave(pid: u32) -> Grave {
        Grave::parse(&format!("{pid} 77 0c6b-11 a host")).unwrap()
    }

    /// What a process leaves that is killed: its file, which nobody holds.
    fn kill(yard: Arc<Graveyard>) {
        let page = yard.page().take();
        drop(page);
    }

    #[test]
    fn only_connections_of_processes_that_are_gone_are_dead() {
        let state = tempfile::tempdir().unwrap();
        let first = Graveyard::new(state.path());
        let (one, two) = (first.plot(), first.plot());
        one.mark("SHA256:a", Some(&grave(1)));
        two.mark("SHA256:b", Some(&grave(2)));
        one.mark("SHA256:a", Some(&grave(3)));
        let next = Graveyard::new(state.path());
        assert_eq!(next.dead("SHA256:a"), [], "it lives");
        drop((one, two));
        kill(first);
        assert_eq!(next.dead("SHA256:a"), [grave(3)]);
        assert_eq!(next.dead("SHA256:b"), [grave(2)]);
        assert_eq!(next.dead("SHA256:c"), []);
    }

    #[test]
    fn what_ended_well_is_forgotten_and_what_did_not_is_not() {
        let state = tempfile::tempdir().unwrap();
        for (clean, left) in [(true, 0), (false, 1)] {
            let yard = Graveyard::new(state.path());
            let plot = yard.plot();
            plot.mark("SHA256:a", Some(&grave(1)));
            if clean {
                plot.clear();
            }
            drop((plot, yard));
            assert_eq!(pages(&state.path().join("connections")).len(), left);
        }
    }

    #[test]
    fn what_another_machine_or_something_else_wrote_is_left_alone() {
        let state = tempfile::tempdir().unwrap();
        let yard = Graveyard::new(state.path());
        yard.plot().mark("SHA256:a", Some(&grave(1)));
        kill(yard);
        let [path] = pages(&state.path().join("connections")).try_into().unwrap();
        let good = std::fs::read(&path).unwrap();
        let next = Graveyard::new(state.path());
        let mut elsewhere = good.clone();
        elsewhere[..4].copy_from_slice(b"else");
        for (bytes, found) in
            [(&good[..], 1), (&elsewhere, 0), (&good[..300], 0), (b"", 0), (&[0xff; 999], 0)]
        {
            private_fs::write(&path, bytes).unwrap();
            assert_eq!(next.dead("SHA256:a").len(), found);
        }
    }

    #[test]
    fn files_of_the_dead_do_not_become_ever_more() {
        let state = tempfile::tempdir().unwrap();
        for pid in 0..MOST_PAGES as u32 + 9 {
            let yard = Graveyard::new(state.path());
            yard.plot().mark("SHA256:a", Some(&grave(pid)));
            kill(yard);
        }
        assert_eq!(pages(&state.path().join("connections")).len(), MOST_PAGES + 1);
    }

    #[test]
    fn without_a_place_to_write_nothing_is_remembered() {
        let yard = Graveyard::new(Path::new("/dev/null/nowhere"));
        yard.plot().mark("SHA256:a", Some(&grave(1)));
        assert_eq!(yard.dead("SHA256:a"), []);
    }
}
