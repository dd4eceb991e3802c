//! What we leave on the host, its removal, and what we ask the host about itself.
//!
//! Owns the helper (a few lines of POSIX `sh` on one exec channel, [`helper`]), the files of one tunnel
//! ([`files`], [`install`]), the environment of the shell ([`exports`]), who listens and who calls
//! ([`sockets`]) and why a forward was refused ([`probe`]). Does not own the channel: the helper is reached
//! through any pair of byte streams, and whoever opened them drives the helper's [`helper::start`] future.
//!
//! Order of events: handshake → facts → (the tunnel forwards a port) → listeners verified → directory →
//! files → callers checked, heartbeats → files removed → goodbye. When the streams end or fall silent at any
//! point, the helper removes the files by itself. Where no command runs, [`sftp`] puts the files there instead and
//! does nothing else.

pub(crate) mod exports;
pub(crate) mod files;
pub(crate) mod helper;
pub(crate) mod home;
pub(crate) mod install;
pub(crate) mod leftovers;
pub(crate) mod managed;
pub(crate) mod probe;
pub(crate) mod profiles;
pub(crate) mod sftp;
pub(crate) mod shadow;
pub(crate) mod sockets;
pub(crate) mod stale;
pub(crate) mod survey;
pub(crate) mod tmux;
pub(crate) mod trust;

/// Returns `text` as one word of a POSIX shell's command line, whatever it holds.
///
/// Single quotes, in which nothing but the quote itself means anything, not even to an interactive bash or zsh.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
