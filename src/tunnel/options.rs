//! What a tunnel is asked to be, checked by `config`.

use std::time::Duration;

/// Which port on the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum PortWish {
    /// [`DEFAULT_PORT`], or a stable per-user port where somebody else has it.
    Auto,
    /// This one or none.
    Exactly(u16),
}

/// The port that tools and people expect (aws-sso's ECS server has it too).
pub(crate) const DEFAULT_PORT: u16 = 4144;

/// How processes on the host reach us.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Transport {
    /// A port and a socket together, whichever the server allows; where it allows neither, files.
    Auto,
    /// A port on 127.0.0.1, for every SDK as it is.
    Tcp,
    /// A unix socket in our directory, through `credential_process`: the kernel lets only our own user in.
    Unix,
    /// Role credentials in files that `credential_process` reads, for servers that refuse every forward.
    File,
}

/// Where the token lies on the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum TokenPlace {
    File,
    Environment,
}

/// What stands between our listener and other users of the host.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CallerCheck {
    /// The uid of every caller is read on the host; where that cannot be done we do not serve.
    Required,
    /// `--trust-host-users`: the token alone decides where the uid cannot be read.
    TrustHostUsers,
}

/// What a tunnel is asked to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) transport: Transport,
    pub(crate) port: PortWish,
    pub(crate) token: TokenPlace,
    pub(crate) caller_check: CallerCheck,
    /// Whether our profiles go into the host's own configuration, for processes that no shell of ours starts.
    pub(crate) install_profiles: bool,
    /// `--remote-config keep`: the host's own configuration stays in force.
    pub(crate) keep_config: bool,
    /// `--tmux`: the shell runs inside tmux on the host, and so outlives a link.
    pub(crate) tmux: bool,
    /// `--linger`: how long role credentials may stay on the host when we end.
    pub(crate) linger: Option<Duration>,
    /// `--reconnect-for`: how long a lost link is tried to be replaced; for ever where nothing was said.
    pub(crate) reconnect_for: Option<Duration>,
}
