//! Which running tunnel is meant.

use super::failure::{Failure, Kind};
use crate::{
    config::{self, Environment, Flags},
    control::{
        client::{self, Error, Found, Peer},
        message::{RefusalKind, Report},
    },
};

/// A tunnel and the process that holds it.
pub(super) type Running = (Peer, Report);

/// Returns every tunnel of this user; what does not answer is told by `warn`.
pub(super) async fn all(environment: &Environment, warn: impl Fn(&str)) -> Vec<Running> {
    let Found { tunnels, silent } = client::find(&environment.runtime_directories()).await;
    for (_, error) in silent {
        warn(&crate::causes::chain(&error));
    }
    tunnels
}

/// Returns the one tunnel that leads to `host`.
pub(super) async fn one(
    host: &str,
    environment: &Environment,
    warn: impl Fn(&str),
) -> Result<Running, Failure> {
    let tunnels = all(environment, warn).await;
    let reports: Vec<&Report> = tunnels.iter().map(|(_, report)| report).collect();
    let meant = meant(host, &reports, || destination(host, environment));
    match meant.as_slice() {
        [one] => tunnels.get(*one).cloned().ok_or_else(|| none(host, &reports)),
        [] => Err(none(host, &reports)),
        several => {
            let list: Vec<String> =
                several.iter().filter_map(|at| reports.get(*at)).map(|report| candidate(report)).collect();
            Err(Failure::new(
                Kind::Usage,
                format!("`{host}` may mean {} tunnels: {}", several.len(), list.join(", ")),
            )
            .with_hint(Some("name one by its process id".to_owned())))
        }
    }
}

/// Returns which of the tunnels a person means: by process id, as they typed it at `connect`, or as where that leads.
fn meant(host: &str, tunnels: &[&Report], destination: impl FnOnce() -> Option<String>) -> Vec<usize> {
    let typed = host.strip_prefix("ssh://").unwrap_or(host).trim_end_matches('/');
    let select = |wanted: &dyn Fn(&Report) -> bool| -> Vec<usize> {
        let hits = tunnels.iter().enumerate().filter(|(_, report)| wanted(report));
        hits.map(|(at, _)| at).collect()
    };
    let by_pid = select(&|report| typed.parse() == Ok(report.pid));
    if !by_pid.is_empty() {
        return by_pid;
    }
    let by_name = select(&|report| names(report).iter().any(|name| name.eq_ignore_ascii_case(typed)));
    if !by_name.is_empty() {
        return by_name;
    }
    // An alias of what was typed then, or the other way round.
    let Some(destination) = destination() else { return Vec::new() };
    select(&|report| report.destination.eq_ignore_ascii_case(&destination))
}

/// Returns everything that a person may call this tunnel's host.
fn names(report: &Report) -> Vec<String> {
    let mut names = vec![report.host.clone(), report.destination.clone()];
    if let Some((user, address)) = report.destination.split_once('@') {
        let name = address.rsplit_once(':').map_or(address, |(name, _)| name);
        names.extend([address.to_owned(), name.to_owned(), format!("{user}@{name}")]);
        let port = address.rsplit_once(':').map_or("22", |(_, port)| port);
        let host = &report.host;
        names.extend([format!("{user}@{host}"), format!("{host}:{port}"), format!("{user}@{host}:{port}")]);
    }
    names
}

fn destination(host: &str, environment: &Environment) -> Option<String> {
    let flags = Flags { host: host.to_owned(), batch: true, ..Flags::default() };
    let target = config::target(&flags, environment, &mut Vec::new()).ok()?;
    Some(super::connect::account(&target))
}

fn candidate(report: &Report) -> String {
    let profiles: Vec<&str> = report.profiles.iter().map(|profile| profile.profile.as_str()).collect();
    format!(
        "{} ({} with {}, process {})",
        report.host,
        report.destination,
        profiles.join(" and "),
        report.pid
    )
}

fn none(host: &str, tunnels: &[&Report]) -> Failure {
    let hint = if tunnels.is_empty() {
        format!("no tunnel runs here; `broker connect {host}` starts one")
    } else {
        let running: Vec<String> = tunnels.iter().map(|report| report.host.clone()).collect();
        format!("there are tunnels to: {}", running.join(", "))
    };
    Failure::new(Kind::Failed, format!("no tunnel to `{host}` runs here")).with_hint(Some(hint))
}

/// Returns why a process did not do what was asked.
pub(super) fn failure(error: Error) -> Failure {
    match error {
        Error::Refused(refusal) => {
            let kind = match refusal.kind {
                RefusalKind::Usage => Kind::Usage,
                RefusalKind::LoginNeeded => Kind::LoginNeeded,
                RefusalKind::RoleDenied => Kind::RoleDenied,
                RefusalKind::Failed => Kind::Failed,
            };
            let hint = refusal.hint.clone();
            Failure::new(kind, refusal).with_hint(hint)
        }
        error => {
            let hint = match &error {
                Error::Silent { pid, .. } | Error::StillThere { pid, .. } => Some(format!(
                    "see what it does with `ps -p {pid}`; `kill -9 {pid}` ends it, and the host cleans itself"
                )),
                _ => None,
            };
            Failure::new(Kind::Failed, error).with_hint(hint)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{audit::Log, clock::Clock, control::board::Board, creds::grant::Grants};

    fn report(host: &str, destination: &str, pid: u32) -> Report {
        let board = Board::new(host.into(), destination.into(), Clock::system());
        Report { pid, ..board.report(1, &Grants::new(Log::to_memory().0)) }
    }

    #[test]
    fn a_tunnel_is_known_by_every_name_that_led_to_it() {
        let bastion = report("bastion", "ada@10.0.0.1:2222", 7);
        let other = report("eve@box", "eve@box.example:22", 8);
        let tunnels = [&bastion, &other];
        for name in [
            "bastion",
            "BASTION",
            "ada@bastion",
            "bastion:2222",
            "ssh://ada@bastion:2222/",
            "10.0.0.1",
            "ada@10.0.0.1:2222",
            "7",
        ] {
            assert_eq!(meant(name, &tunnels, || None), [0], "{name}");
        }
        for name in ["eve@box", "box.example", "box.example:22", "8"] {
            assert_eq!(meant(name, &tunnels, || None), [1], "{name}");
        }
        assert_eq!(meant("alias", &tunnels, || Some("eve@box.example:22".into())), [1]);
        for name in ["bast", "eve@bastion", "bastion:22", "9", ""] {
            assert_eq!(meant(name, &tunnels, || None), [0usize; 0], "{name}");
        }
    }

    #[test]
    fn two_tunnels_to_one_host_are_both_named() {
        let [one, two] = [7, 8].map(|pid| report("bastion", "ada@10.0.0.1:22", pid));
        assert_eq!(meant("bastion", &[&one, &two], || None), [0, 1]);
        assert_eq!(meant("8", &[&one, &two], || None), [1]);
    }
}
