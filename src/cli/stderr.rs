//! stderr, without ever waiting for whoever reads it.
//!
//! A terminal that was stopped with `^S`, a pager that nobody scrolls and a log collector that hangs all make a write
//! to stderr wait. Our one thread must not: the tunnel would stop answering, and the helper on the host would take the
//! silence for our death. So a thread of its own writes, out of a queue with an end.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// What waits for a reader at most, in bytes: many screens, and nothing beside the rest of the program.
const LONGEST_QUEUE: usize = 64 * 1024;

/// How long is waited for a reader before something that must come after: a prompt, a shell, the end. Whoever reads
/// at all has read by then, and a stop has two seconds in all.
const READER_PATIENCE: Duration = Duration::from_millis(300);

/// Takes text for stderr. Clones write into the same queue.
#[derive(Clone)]
pub(super) struct Stderr {
    queue: Arc<Queue>,
}

struct Queue {
    lines: Mutex<Lines>,
    changed: Condvar,
    /// Says how many lines were left out.
    missed: Box<dyn Fn(u64) -> String + Send + Sync>,
}

#[derive(Default)]
struct Lines {
    waiting: VecDeque<Vec<u8>>,
    bytes: usize,
    missed: u64,
    /// The thread is there, and has taken something that is not written yet.
    running: bool,
    writing: bool,
}

impl Stderr {
    /// `missed` makes the line that stands for so many lines that nobody had room for.
    pub(super) fn new(missed: impl Fn(u64) -> String + Send + Sync + 'static) -> Self {
        let queue = Queue { lines: Mutex::default(), changed: Condvar::new(), missed: Box::new(missed) };
        Self { queue: Arc::new(queue) }
    }

    /// Has `text` written as soon as there is a reader for it. Left out and counted when too much waits already.
    pub(super) fn write(&self, text: &[u8]) {
        let mut lines = self.queue.lock();
        if lines.bytes + text.len() > LONGEST_QUEUE {
            lines.missed += 1;
            return;
        }
        lines.bytes += text.len();
        lines.waiting.push_back(text.to_vec());
        if !lines.running {
            let queue = Arc::clone(&self.queue);
            // It ends with the process: a write that waits cannot be called back.
            let started = thread::Builder::new().name("stderr".into()).spawn(move || queue.run(io::stderr()));
            lines.running = started.is_ok();
        }
        if !lines.running {
            // No further thread is allowed here, and what has to be said matters more than the wait.
            lines.bytes = 0;
            for text in std::mem::take(&mut lines.waiting) {
                drop(io::stderr().write_all(&text));
            }
        }
        self.queue.changed.notify_all();
    }

    /// Returns when everything is written, or when nobody reads it.
    pub(super) fn flush(&self) {
        let lines = self.queue.lock();
        let unwritten = |lines: &mut Lines| lines.writing || !lines.waiting.is_empty();
        drop(self.queue.changed.wait_timeout_while(lines, READER_PATIENCE, unwritten));
    }
}

impl Queue {
    fn run(&self, mut out: impl Write) {
        let mut lines = self.lock();
        loop {
            let text = match lines.waiting.pop_front() {
                Some(text) => text,
                None if lines.missed > 0 => (self.missed)(std::mem::take(&mut lines.missed)).into_bytes(),
                None => {
                    lines = self.changed.wait(lines).unwrap_or_else(PoisonError::into_inner);
                    continue;
                }
            };
            lines.bytes = lines.bytes.saturating_sub(text.len());
            lines.writing = true;
            drop(lines);
            // A closed stderr must not end the tunnel.
            drop(out.write_all(&text));
            lines = self.lock();
            lines.writing = false;
            self.changed.notify_all();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// For lines of the log, which are written whole.
impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        Self::write(self, text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    /// A `Stderr` that writes to a pipe of its own, and the pipe's other end.
    fn piped() -> (Stderr, io::PipeReader) {
        let (reader, writer) = io::pipe().unwrap();
        let stderr = Stderr::new(|count| format!("{count} missed\n"));
        let queue = Arc::clone(&stderr.queue);
        stderr.queue.lock().running = true;
        thread::spawn(move || queue.run(writer));
        (stderr, reader)
    }

    fn read(reader: &mut io::PipeReader, until: &str) -> String {
        let mut text = String::new();
        let mut byte = [0];
        while !text.ends_with(until) {
            reader.read_exact(&mut byte).unwrap();
            text.push(char::from(byte[0]));
        }
        text
    }

    #[test]
    fn lines_come_out_whole_and_in_order() {
        let (stderr, mut reader) = piped();
        for n in 0..100 {
            stderr.write(format!("line {n}\n").as_bytes());
        }
        let expected: String = (0..100).map(|n| format!("line {n}\n")).collect();
        assert_eq!(read(&mut reader, "line 99\n"), expected);
    }

    #[test]
    fn without_a_reader_nobody_waits_and_what_was_left_out_is_counted() {
        let (stderr, mut reader) = piped();
        let line = [b'x'; 1023];
        let line = [line.as_slice(), b"\n"].concat();
        // A pipe holds 64 KiB, the queue as much; one line may be under way.
        for _ in 0..1000 {
            stderr.write(&line);
        }
        stderr.flush();
        let text = read(&mut reader, "missed\n");
        let missed: usize = text.lines().last().unwrap().split_once(' ').unwrap().0.parse().unwrap();
        assert_eq!(text.lines().count() - 1 + missed, 1000);
        assert!(missed > 800, "{missed}");
        stderr.write(b"and on\n");
        assert_eq!(read(&mut reader, "and on\n"), "and on\n");
    }
}
