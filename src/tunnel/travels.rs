//! What follows a user from the host to other machines: a scheduler's jobs take our environment along, and a home
//! directory may be shared. There our port may be another user's, and so may every name in a directory of everybody's.

use super::{CallerCheck, Error, Event, Inputs, TokenPlace};
use crate::remote::{
    files::{Machine, Reach},
    helper::Facts,
    install::Place,
};

/// Returns where our directory's name leads for those who have nothing but it.
pub(super) fn reach<'a>(
    place: Place,
    facts: Option<&'a Facts>,
    token: TokenPlace,
    keep_config: bool,
) -> Reach<'a> {
    let shared = |facts: &'a Facts| {
        let boot = facts.boot_id.as_deref().unwrap_or_default();
        Reach::Shared(Machine { host: &facts.host, boot })
    };
    match (place, facts) {
        (Place::Home, Some(facts)) => shared(facts),
        // An SDK that is too old for token files would ask whoever has our port where its job runs. The configuration
        // serves all of them as well, if it is ours and there is a program to ask us with.
        (Place::Runtime, Some(facts))
            if facts.scheduler.is_some() && facts.fetches && token == TokenPlace::File && !keep_config =>
        {
            shared(facts)
        }
        // Over SFTP the host does not say which one it is; there is no port then.
        (Place::Home, None) | (Place::Runtime, _) => Reach::Ours,
        (Place::SharedMemory | Place::Temporary | Place::Random, _) => Reach::Anybodys,
    }
}

/// Refuses what would give credentials to another user of another machine: a token that travels and is all it takes.
pub(super) fn check(inputs: &Inputs, facts: &Facts) -> Result<(), Error> {
    let token_is_enough = !facts.shows_sockets && inputs.options.caller_check == CallerCheck::TrustHostUsers;
    match &facts.scheduler {
        Some(scheduler) if token_is_enough && inputs.options.token == TokenPlace::Environment => {
            Err(Error::TokenTravels { host: inputs.host(), scheduler: scheduler.clone() })
        }
        _ => Ok(()),
    }
}

/// Tells the person what our directory in this place and our environment mean for other machines.
pub(super) fn tell(inputs: &Inputs, facts: Option<&Facts>, place: Place, path: &str, files: bool) {
    let host = inputs.host();
    let scheduler = facts.and_then(|facts| facts.scheduler.as_deref());
    let lies = if files { "credentials lie" } else { "token lies" };
    let warning = |message: String| inputs.observe(Event::Warning { message });
    match (place, scheduler) {
        (Place::Home, None) => warning(format!(
            "nothing but the home directory can be written on {host}, so the {lies} in `{path}`"
        )),
        (Place::Home, Some(scheduler)) => inputs.observe(Event::Notice {
            message: format!(
                "`{scheduler}` of {host} starts jobs on other machines with our environment, and you have no runtime \
                 directory there, so the {lies} in `{path}`, which serves {host} alone"
            ),
        }),
        (Place::SharedMemory | Place::Temporary | Place::Random, Some(scheduler)) => warning(format!(
            "`{scheduler}` of {host} starts jobs on other machines with our environment, where `{path}` may be another \
             user's: start them without it (`sbatch --export=NONE`)"
        )),
        (Place::Random, None) => warning(format!(
            "another user of {host} holds our usual directory; this time it is `{path}`"
        )),
        (Place::Runtime, _) | (Place::SharedMemory | Place::Temporary, None) => {}
    }
    if place == Place::Home && facts.is_some() && inputs.options.keep_config {
        warning(format!(
            "the configuration of {host} stays in force (`--remote-config keep`) and leads nobody to us there; \
             `--install-profiles` would"
        ));
    }
    if let (Some(scheduler), TokenPlace::Environment) = (scheduler, inputs.options.token) {
        warning(format!(
            "`{scheduler}` of {host} starts jobs on other machines with our environment, and so with the token \
             (`--token env`): whoever holds our port there is asked for credentials, and may answer with some of their own; start \
             jobs without it (`sbatch --export=NONE`)"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::helper::Parent;

    #[test]
    fn the_port_is_named_to_no_job_where_the_configuration_serves_as_well() {
        let facts = |scheduler: Option<&str>, fetches| Facts {
            uid: crate::caller::Uid(1000),
            system: "Linux".to_owned(),
            host: "login1".to_owned(),
            shell: None,
            home: None,
            boot_id: None,
            parent: Parent { pid: 1, started: None },
            shows_sockets: true,
            fetches,
            scheduler: scheduler.map(str::to_owned),
            token_caches: Vec::new(),
        };
        let (none, cluster, bare) =
            (facts(None, true), facts(Some("sbatch"), true), facts(Some("sbatch"), false));
        let shared = Reach::Shared(Machine { host: "login1", boot: "" });
        let (file, environment) = (TokenPlace::File, TokenPlace::Environment);
        for (facts, token, keep_config, expected) in [
            (&cluster, file, false, shared),
            (&none, file, false, Reach::Ours),
            // What was asked for, and what has no other way.
            (&cluster, environment, false, Reach::Ours),
            (&cluster, file, true, Reach::Ours),
            (&bare, file, false, Reach::Ours),
        ] {
            let found = reach(Place::Runtime, Some(facts), token, keep_config);
            assert_eq!(found, expected, "{facts:?} {token:?} {keep_config}");
            assert_eq!(reach(Place::Home, Some(facts), token, keep_config), shared);
        }
    }
}
