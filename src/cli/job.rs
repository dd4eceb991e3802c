//! What a tunnel is for, over as many links as it takes: the exports, a command, or a shell.

use std::process::ExitCode;

use super::{
    background,
    connect::tunnel_failure,
    console,
    failure::{Failure, Kind},
    notify,
    terminal::Terminal,
};
use crate::{
    config::{Environment, Job, Plan},
    remote::exports::Shell,
    ssh::{
        error::{ChannelRefused, Error as Ssh},
        inbox::Exit,
        terminal::Outcome,
    },
    tunnel::{self, Lost, Tunnel},
};

/// Runs what the tunnel is for, until it ends or the tunnel is lost for good.
pub(super) async fn run(
    plan: &Plan,
    tunnel: &mut Tunnel,
    environment: &Environment,
    terminal: &Terminal,
) -> Result<ExitCode, Failure> {
    let host = &plan.target.original;
    match &plan.job {
        Job::Exports { shell, background } => {
            if shell.is_none()
                && let Some(notice) = sh_instead(host, tunnel.login_shell())
            {
                terminal.notice(&notice);
            }
            let exports = tunnel.exports(*shell);
            terminal.data(exports.as_bytes()).map_err(|e| Failure::new(Kind::Failed, NotPrinted(e)))?;
            if *background {
                background::detach(terminal, environment, host)?;
            }
            if let Err(error) = notify::ready(environment, host) {
                terminal
                    .warning(&format!("the service manager was not told that the tunnel is ready: {error}"));
            }
            Err(tunnel_failure(tunnel.keep().await))
        }
        // What ran in a command is gone with its link, and nobody but its user knows whether it may run twice.
        Job::Command { tty, .. } => match once(plan, tunnel, environment, terminal, *tty).await? {
            Ok(outcome) => console::exit_code(outcome, host),
            Err(lost) => Err(tunnel_failure(lost.into())),
        },
        Job::Shell { tty } => {
            let tty = tty.unwrap_or_else(console::stdin_is_terminal);
            // A shell that reads a script would begin in the middle of it.
            let again = tty && console::stdin_is_terminal();
            loop {
                let lost = match once(plan, tunnel, environment, terminal, tty).await? {
                    Ok(Outcome::Exited(Exit::Lost)) if again => tunnel.lost().await,
                    Ok(outcome) => return console::exit_code(outcome, host),
                    Err(lost) if again => lost,
                    Err(lost) => return Err(tunnel_failure(lost.into())),
                };
                terminal.restore();
                terminal.untangle();
                tunnel.reconnect(lost).await.map_err(tunnel_failure)?;
                terminal.notice(&if plan.options.tmux {
                    format!("{host}: back in tmux")
                } else {
                    format!("{host}: this is a new shell; what ran in the one before has lost its terminal")
                });
            }
        }
    }
}

/// Runs the shell or the command on one link.
async fn once(
    plan: &Plan,
    tunnel: &mut Tunnel,
    environment: &Environment,
    terminal: &Terminal,
    tty: bool,
) -> Result<Result<Outcome, Lost>, Failure> {
    let host = &plan.target.original;
    let pty = tty.then(|| console::pty(environment.get("TERM")));
    let started = match &plan.job {
        Job::Command { .. } => tunnel.command(pty.as_ref()).await,
        Job::Shell { .. } | Job::Exports { .. } => tunnel.shell(pty.as_ref()).await,
    };
    let (process, pump) = match started {
        Ok(started) => started,
        // Lost before it began.
        Err(tunnel::Error::Lost(lost)) => return Ok(Err(lost)),
        Err(tunnel::Error::Ssh(Ssh::ChannelRefused(ChannelRefused::Closed { .. }))) => {
            return Ok(Err(tunnel.lost().await));
        }
        Err(error) => return Err(tunnel_failure(error)),
    };
    if tty && !process.has_pty {
        // As ssh goes on too; but nobody would guess why there is no prompt.
        terminal.warning(&format!(
            "{host} gives no terminal (PermitTTY, or `no-pty` on your key), so the shell shows no prompt; \
             end it with Ctrl-D; `-T` asks for none"
        ));
    }
    match tunnel.during(console::run(terminal, process, pump, plan.target.session.escape)).await {
        Ok(ran) => ran.map(Ok).map_err(|e| Failure::new(Kind::Failed, e)),
        Err(lost) => Ok(Err(lost)),
    }
}

/// Says that the exports are for sh because the login shell's language is not ours.
pub(super) fn sh_instead(host: &str, login_shell: Option<&str>) -> Option<String> {
    match login_shell {
        Some(path) if Shell::of(path).is_some() => None,
        Some(path) => Some(format!(
            "the exports are for sh, as the login shell of {host} is `{}`; `--print-env` chooses another language",
            crate::printable::one_line(path)
        )),
        None => Some(format!(
            "the exports are for sh, as the login shell of {host} is not known; `--print-env` chooses another language"
        )),
    }
}

/// Nobody on the host would know of the tunnel.
#[derive(Debug, thiserror::Error)]
#[error("could not print the exports on stdout")]
pub(super) struct NotPrinted(#[source] pub(super) std::io::Error);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_shell_without_exports_is_named() {
        for known in ["/bin/bash", "/usr/bin/fish", "/bin/csh", "/usr/bin/pwsh", "/bin/rbash"] {
            assert_eq!(sh_instead("h", Some(known)), None, "{known}");
        }
        for unknown in ["/usr/sbin/nologin", "/usr/bin/xonsh", "/usr/bin/nu", "/x\u{1b}[2J"] {
            let notice = sh_instead("h", Some(unknown)).unwrap();
            assert!(notice.contains(unknown) != unknown.contains('\u{1b}'), "{notice}");
            assert!(!notice.contains('\u{1b}') && notice.contains("for sh"), "{notice}");
        }
        assert!(sh_instead("h", None).unwrap().contains("not known"));
    }
}
