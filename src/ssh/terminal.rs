//! A person or a pipe in front of a [`Process`]: bytes both ways, window changes, escapes.
//!
//! This knows byte streams only. Who reads the tty, makes it raw and gives it back is `cli::terminal`.

use std::io;

use bytes::Bytes;
use russh::Pty as Mode;
use rustix::termios::{
    ControlModes, InputModes, LocalModes, OutputModes, SpecialCodeIndex, SpecialCodes, Termios,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};

use super::{
    inbox::Exit,
    process::{Event, Process, Size},
    pump::Pump,
};

/// The terminal that a process gets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pty {
    /// `TERM`.
    pub(crate) term: String,
    pub(crate) size: Size,
    /// How the local terminal treats lines and keys (RFC 4254, section 8).
    pub(crate) modes: Vec<(Mode, u32)>,
}

/// The local side of a [`Process`].
pub(crate) struct Local<'a, I, O, E> {
    pub(crate) stdin: I,
    pub(crate) stdout: O,
    pub(crate) stderr: E,
    /// New sizes of the window.
    pub(crate) sizes: mpsc::Receiver<Size>,
    /// `EscapeChar`; `None` for none. Without a terminal there are no escapes.
    pub(crate) escape: Option<u8>,
    /// Called for `~^Z`: stops this process and returns when it goes on.
    pub(crate) suspend: &'a mut (dyn FnMut() + Send),
}

/// How a bridged process ended.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Outcome {
    Exited(Exit),
    /// The person typed `~.`.
    Left,
    /// Nobody reads our output any more.
    OutputClosed,
    /// Our output could not be written, and why: there is no room for it.
    OutputLost(String),
}

/// What takes the output of a [`Process`].
pub(crate) trait Output {
    /// Returns when `bytes` are where whoever reads them can take them.
    fn put(&mut self, bytes: Bytes) -> impl Future<Output = io::Result<()>> + Send;
}

impl<W: AsyncWrite + Unpin + Send> Output for W {
    async fn put(&mut self, bytes: Bytes) -> io::Result<()> {
        self.write_all(&bytes).await?;
        self.flush().await
    }
}

/// One read of what is typed or piped in.
const READ: usize = 16 * 1024;

const ESCAPES: &str = "Supported escape sequences:\r\n \
    ~.   - end this connection\r\n \
    ~^Z  - suspend broker\r\n \
    ~?   - this message\r\n \
    ~~   - send the escape character by typing it twice\r\n\
    (Note that escapes are only recognized immediately after newline.)\r\n";

/// Moves bytes between `process` and `local` until the process or the person ends it.
pub(crate) async fn bridge<I, O, E>(process: Process, pump: Pump, local: Local<'_, I, O, E>) -> Outcome
where
    I: AsyncRead + Unpin,
    O: Output,
    E: Output,
{
    let Process { mut stdin, mut events, control, has_pty } = process;
    let Local { stdin: mut typed, mut stdout, mut stderr, mut sizes, escape, suspend } = local;
    let (notices, mut noticed) = mpsc::channel::<()>(1);
    let input = async {
        let mut scanner = Escapes::new(escape.filter(|_| has_pty));
        let mut buffer = vec![0; READ];
        // Input that cannot be read has ended, as a closed terminal has.
        while let Ok(n @ 1..) = typed.read(&mut buffer).await {
            for item in scanner.scan(buffer.get(..n).unwrap_or_default()) {
                match item {
                    Typed::Bytes(bytes) => {
                        if stdin.write_all(&bytes).await.is_err() {
                            break;
                        }
                    }
                    Typed::Leave => return Outcome::Left,
                    Typed::Suspend => suspend(),
                    // A second help while the first is not yet shown is the same help.
                    Typed::Help => notices.try_send(()).unwrap_or_default(),
                }
            }
        }
        drop(stdin);
        std::future::pending().await
    };
    let output = async {
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                Some(()) = noticed.recv() => Some(Event::Stderr(ESCAPES.into())),
            };
            let written = match event {
                Some(Event::Stdout(bytes)) => stdout.put(bytes).await,
                Some(Event::Stderr(bytes)) => stderr.put(bytes).await,
                Some(Event::Exit(exit)) => return Outcome::Exited(exit),
                None => return Outcome::Exited(Exit::Unknown),
            };
            match written {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Outcome::OutputClosed,
                Err(e) => return Outcome::OutputLost(e.to_string()),
            }
        }
    };
    let resizing = async {
        while let Some(size) = sizes.recv().await {
            control.resize(size).await;
        }
        std::future::pending().await
    };
    let pumping = async {
        pump.await;
        // What it brought is still read by the others.
        std::future::pending().await
    };
    tokio::select! {
        biased;
        () = pumping => Outcome::Exited(Exit::Unknown),
        outcome = output => outcome,
        outcome = input => outcome,
        () = resizing => Outcome::Exited(Exit::Unknown),
    }
}

/// What a person typed.
#[derive(Debug, Eq, PartialEq)]
enum Typed {
    Bytes(Vec<u8>),
    Leave,
    Help,
    Suspend,
}

/// Finds escapes in what is typed: only at the beginning of a line, as OpenSSH does.
#[derive(Debug)]
struct Escapes {
    escape: Option<u8>,
    line_begins: bool,
    pending: bool,
}

impl Escapes {
    fn new(escape: Option<u8>) -> Self {
        Self { escape, line_begins: true, pending: false }
    }

    fn scan(&mut self, typed: &[u8]) -> Vec<Typed> {
        const CTRL_Z: u8 = 0x1a;
        let Some(escape) = self.escape else { return vec![Typed::Bytes(typed.to_vec())] };
        let mut items = Vec::new();
        let mut plain = Vec::new();
        for &byte in typed {
            if std::mem::take(&mut self.pending) {
                let command = match byte {
                    b'.' => Some(Typed::Leave),
                    b'?' => Some(Typed::Help),
                    CTRL_Z => Some(Typed::Suspend),
                    _ => None,
                };
                if let Some(command) = command {
                    if !plain.is_empty() {
                        items.push(Typed::Bytes(std::mem::take(&mut plain)));
                    }
                    items.push(command);
                    // The cursor is where the line began: another escape may follow.
                    self.line_begins = true;
                    continue;
                }
                plain.push(escape);
                if byte == escape {
                    self.line_begins = false;
                    continue;
                }
            } else if self.line_begins && byte == escape {
                self.pending = true;
                continue;
            }
            plain.push(byte);
            self.line_begins = matches!(byte, b'\r' | b'\n');
        }
        if !plain.is_empty() {
            items.push(Typed::Bytes(plain));
        }
        items
    }
}

/// Returns the modes of a local terminal as a server wants them.
pub(crate) fn modes(termios: &Termios) -> Vec<(Mode, u32)> {
    let mut modes =
        vec![(Mode::TTY_OP_ISPEED, termios.input_speed()), (Mode::TTY_OP_OSPEED, termios.output_speed())];
    modes.extend(KEYS.iter().map(|&(mode, key)| (mode, u32::from(key_code(&termios.special_codes, key)))));
    modes.extend(INPUT.iter().map(|&(mode, flag)| (mode, termios.input_modes.contains(flag).into())));
    modes.extend(LOCAL.iter().map(|&(mode, flag)| (mode, termios.local_modes.contains(flag).into())));
    modes.extend(OUTPUT.iter().map(|&(mode, flag)| (mode, termios.output_modes.contains(flag).into())));
    let size = termios.control_modes & ControlModes::CSIZE;
    modes.extend([
        (Mode::CS7, (size == ControlModes::CS7).into()),
        (Mode::CS8, (size == ControlModes::CS8).into()),
        (Mode::PARENB, termios.control_modes.contains(ControlModes::PARENB).into()),
        (Mode::PARODD, termios.control_modes.contains(ControlModes::PARODD).into()),
    ]);
    modes
}

/// RFC 4254 says 255 where a terminal says 0: the key does nothing.
fn key_code(codes: &SpecialCodes, key: SpecialCodeIndex) -> u8 {
    match codes[key] {
        0 => 255,
        code => code,
    }
}

const KEYS: &[(Mode, SpecialCodeIndex)] = &[
    (Mode::VINTR, SpecialCodeIndex::VINTR),
    (Mode::VQUIT, SpecialCodeIndex::VQUIT),
    (Mode::VERASE, SpecialCodeIndex::VERASE),
    (Mode::VKILL, SpecialCodeIndex::VKILL),
    (Mode::VEOF, SpecialCodeIndex::VEOF),
    (Mode::VEOL, SpecialCodeIndex::VEOL),
    (Mode::VEOL2, SpecialCodeIndex::VEOL2),
    (Mode::VSTART, SpecialCodeIndex::VSTART),
    (Mode::VSTOP, SpecialCodeIndex::VSTOP),
    (Mode::VSUSP, SpecialCodeIndex::VSUSP),
    (Mode::VREPRINT, SpecialCodeIndex::VREPRINT),
    (Mode::VWERASE, SpecialCodeIndex::VWERASE),
    (Mode::VLNEXT, SpecialCodeIndex::VLNEXT),
    (Mode::VDISCARD, SpecialCodeIndex::VDISCARD),
];

const INPUT: &[(Mode, InputModes)] = &[
    (Mode::IGNPAR, InputModes::IGNPAR),
    (Mode::PARMRK, InputModes::PARMRK),
    (Mode::INPCK, InputModes::INPCK),
    (Mode::ISTRIP, InputModes::ISTRIP),
    (Mode::INLCR, InputModes::INLCR),
    (Mode::IGNCR, InputModes::IGNCR),
    (Mode::ICRNL, InputModes::ICRNL),
    #[cfg(target_os = "linux")]
    (Mode::IUCLC, InputModes::IUCLC),
    (Mode::IXON, InputModes::IXON),
    (Mode::IXANY, InputModes::IXANY),
    (Mode::IXOFF, InputModes::IXOFF),
    (Mode::IMAXBEL, InputModes::IMAXBEL),
    (Mode::IUTF8, InputModes::IUTF8),
];

const LOCAL: &[(Mode, LocalModes)] = &[
    (Mode::ISIG, LocalModes::ISIG),
    (Mode::ICANON, LocalModes::ICANON),
    (Mode::ECHO, LocalModes::ECHO),
    (Mode::ECHOE, LocalModes::ECHOE),
    (Mode::ECHOK, LocalModes::ECHOK),
    (Mode::ECHONL, LocalModes::ECHONL),
    (Mode::NOFLSH, LocalModes::NOFLSH),
    (Mode::TOSTOP, LocalModes::TOSTOP),
    (Mode::IEXTEN, LocalModes::IEXTEN),
    (Mode::ECHOCTL, LocalModes::ECHOCTL),
    (Mode::ECHOKE, LocalModes::ECHOKE),
    (Mode::PENDIN, LocalModes::PENDIN),
];

const OUTPUT: &[(Mode, OutputModes)] = &[
    (Mode::OPOST, OutputModes::OPOST),
    #[cfg(target_os = "linux")]
    (Mode::OLCUC, OutputModes::OLCUC),
    (Mode::ONLCR, OutputModes::ONLCR),
    (Mode::OCRNL, OutputModes::OCRNL),
    (Mode::ONOCR, OutputModes::ONOCR),
    (Mode::ONLRET, OutputModes::ONLRET),
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn scan(pieces: &[&[u8]]) -> Vec<Typed> {
        let mut scanner = Escapes::new(Some(b'~'));
        let mut items = Vec::new();
        for item in pieces.iter().flat_map(|piece| scanner.scan(piece)) {
            match (items.last_mut(), item) {
                (Some(Typed::Bytes(before)), Typed::Bytes(bytes)) => before.extend(bytes),
                (_, item) => items.push(item),
            }
        }
        items
    }

    fn bytes(text: &str) -> Typed {
        Typed::Bytes(text.into())
    }

    #[test]
    fn escapes_count_only_at_the_beginning_of_a_line() {
        assert_eq!(scan(&[b"~."]), [Typed::Leave]);
        assert_eq!(scan(&[b"ls\r~."]), [bytes("ls\r"), Typed::Leave]);
        assert_eq!(scan(&[b"ls ~."]), [bytes("ls ~.")]);
        assert_eq!(scan(&[b"~?x"]), [Typed::Help, bytes("x")]);
        assert_eq!(scan(&[b"~\x1a~."]), [Typed::Suspend, Typed::Leave]);
        assert_eq!(scan(&[b"~~."]), [bytes("~.")]);
        assert_eq!(scan(&[b"~a\r~b"]), [bytes("~a\r~b")]);
        assert_eq!(scan(&[b"\n", b"~", b"."]), [bytes("\n"), Typed::Leave]);
    }

    proptest! {
        #[test]
        fn without_an_escape_character_nothing_is_touched(typed: Vec<u8>) {
            prop_assert_eq!(Escapes::new(None).scan(&typed), [Typed::Bytes(typed)]);
        }

        #[test]
        fn how_typing_is_cut_into_reads_does_not_matter(
            typed in proptest::collection::vec(prop_oneof![Just(b'~'), Just(b'.'), Just(b'\r'), Just(b'?'), Just(b'a')], 0..20),
            cut: usize,
        ) {
            let (a, b) = typed.split_at(cut % (typed.len() + 1));
            prop_assert_eq!(scan(&[&typed]), scan(&[a, b]));
        }
    }

    #[test]
    fn a_real_terminals_modes_are_sent() {
        let pty =
            rustix::pty::openpt(rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY).unwrap();
        let termios = rustix::termios::tcgetattr(&pty).unwrap();
        let modes = modes(&termios);
        let of = |wanted| modes.iter().find(|(mode, _)| *mode == wanted).map(|(_, value)| *value);
        assert_eq!(of(Mode::VINTR), Some(3), "^C");
        assert_eq!(of(Mode::VERASE), Some(0x7f));
        assert_eq!((of(Mode::ECHO), of(Mode::ICANON), of(Mode::ISIG)), (Some(1), Some(1), Some(1)));
        assert_eq!((of(Mode::ONLCR), of(Mode::CS8), of(Mode::CS7)), (Some(1), Some(1), Some(0)));
        assert!(of(Mode::TTY_OP_OSPEED).unwrap() > 0);
        assert!(of(Mode::TTY_OP_END).is_none(), "russh adds the end itself");
    }
}
