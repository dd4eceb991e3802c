//! The shell inside tmux on the host, which outlives a lost connection.
//!
//! A tmux server of its own, so that its windows have our environment whatever else the user runs in tmux; the
//! variables reach it from the shell that starts it, and so through no argument list. Its name is that of our
//! directory, which is the same on every link.

use super::install::{Content, File, FileName};

const TMUX_SH: &str = "tmux.sh";

/// Returns the script, for `directory`, which needs no quoting.
pub(crate) fn file(directory: &str) -> Option<File> {
    let name = session(directory);
    let text = format!(
        "# Attaches to the shell of the connection before, or starts one.\n\
         if ! command -v tmux >/dev/null 2>&1; then\n  \
           echo 'broker: there is no tmux on this host, so this shell will not survive a lost connection' >&2\n  \
           exec /bin/sh {directory}/shell.sh\n\
         fi\n\
         . {directory}/env.sh\n\
         exec tmux -L {name} new-session -A -s {name} 'exec /bin/sh {directory}/shell.sh'\n"
    );
    Some(File { name: FileName::new(TMUX_SH)?, content: Content::text(text) })
}

/// Returns the command for a channel with a terminal.
pub(crate) fn command(directory: &str) -> String {
    format!("exec /bin/sh {directory}/{TMUX_SH}")
}

/// Returns the name of the tmux server and its session.
pub(crate) fn session(directory: &str) -> String {
    format!("broker-{}", directory.rsplit('/').next().unwrap_or_default())
}
