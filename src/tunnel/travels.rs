//! What follows a user from the host to other machines: a scheduler's jobs take our environment along, and a home
//! directory may be shared. There our port may be another user's, and so may every name in a directory of everybody's.

use super::{CallerCheck, Error, Event, Inputs, TokenPlace};
use crate::remote::{
    files::{Machine, Reach},
    helper::Facts,
    install::Place,
};

/// Returns where our directory's name leads for those who have nothing but it.
pub(super) fn reach(place: Place, facts: Option<&Facts>) -> Reach<'_> {
    match (place, facts) {
        (Place::Home, Some(facts)) => {
            let boot = facts.boot_id.as_deref().unwrap_or_default();
            Reach::Shared(Machine { host: &facts.host, boot })
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
