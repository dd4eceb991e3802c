//! `--confirm`: what a person at the laptop said about who may use which role, and who still waits for an answer.
//!
//! An answer holds for one user of the host and one profile, until it is changed or the role is replaced. Which
//! process of that user asks is not known to anybody: the kernel proves the user, and the rest is what it says.

use std::collections::BTreeMap;

use tokio::time::Instant;

use crate::names::ProfileName;

/// Who is asked for: a user of the host, or `None` for files that lie there.
type Client = Option<u32>;

/// What a person has to say something about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Waiting {
    pub(crate) profile: ProfileName,
    /// The user of the host; `None` where credentials are to lie in a file, or callers are not told apart.
    pub(crate) uid: Client,
    /// What the first request said about itself. Anybody can say anything.
    pub(crate) user_agent: Option<String>,
    pub(crate) since: Instant,
}

/// Why something that a token opens is not handed out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Unconfirmed {
    /// Nobody has answered yet.
    Waiting,
    /// A person said no.
    Denied,
}

/// The answers and the questions.
#[derive(Debug, Default)]
pub(super) struct Confirmations {
    required: bool,
    answers: BTreeMap<(ProfileName, Client), bool>,
    waiting: Vec<Waiting>,
}

impl Confirmations {
    /// Has everything asked about from now on.
    pub(super) fn require(&mut self) {
        self.required = true;
    }

    /// Returns whether it may be handed out, and whether the question is new.
    pub(super) fn check(
        &mut self,
        profile: &ProfileName,
        uid: Client,
        user_agent: impl FnOnce() -> Option<String>,
    ) -> (Result<(), Unconfirmed>, bool) {
        if !self.required {
            return (Ok(()), false);
        }
        match self.answers.get(&(profile.clone(), uid)) {
            Some(true) => (Ok(()), false),
            Some(false) => (Err(Unconfirmed::Denied), false),
            None => {
                let known = self.waiting.iter().any(|asked| asked.profile == *profile && asked.uid == uid);
                if !known {
                    let (profile, user_agent, since) = (profile.clone(), user_agent(), Instant::now());
                    self.waiting.push(Waiting { profile, uid, user_agent, since });
                }
                (Err(Unconfirmed::Waiting), !known)
            }
        }
    }

    /// Answers what waits and `chosen` wants, and changes what was answered before; returns what was answered.
    pub(super) fn answer(
        &mut self,
        chosen: impl Fn(&ProfileName, Client) -> bool,
        allow: bool,
    ) -> Vec<(ProfileName, Client)> {
        let (answered, waiting) = std::mem::take(&mut self.waiting)
            .into_iter()
            .partition::<Vec<_>, _>(|asked| chosen(&asked.profile, asked.uid));
        self.waiting = waiting;
        let mut answered: Vec<_> = answered.into_iter().map(|asked| (asked.profile, asked.uid)).collect();
        for (key, before) in &mut self.answers {
            if *before != allow && chosen(&key.0, key.1) {
                *before = allow;
                answered.push(key.clone());
            }
        }
        self.answers.extend(answered.iter().map(|key| (key.clone(), allow)));
        answered
    }

    /// Forgets what was said about a profile, which leads to another role from now on or to none.
    pub(super) fn forget(&mut self, profile: &ProfileName) {
        self.answers.retain(|(answered, _), _| answered != profile);
        self.waiting.retain(|asked| asked.profile != *profile);
    }

    pub(super) fn waiting(&self) -> Vec<Waiting> {
        self.waiting.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(name: &str) -> ProfileName {
        name.parse().unwrap()
    }

    #[tokio::test]
    async fn nothing_is_asked_unless_it_is_wanted() {
        let mut confirmations = Confirmations::default();
        assert_eq!(confirmations.check(&profile("dev"), Some(1), || None), (Ok(()), false));
        assert!(confirmations.waiting().is_empty());
    }

    #[tokio::test]
    async fn an_answer_holds_for_one_user_and_one_role_until_it_changes() {
        let mut confirmations = Confirmations::default();
        confirmations.require();
        let (dev, audit) = (profile("dev"), profile("audit"));
        let ask =
            |confirmations: &mut Confirmations, profile, uid| confirmations.check(profile, uid, || None);
        assert_eq!(ask(&mut confirmations, &dev, Some(1)), (Err(Unconfirmed::Waiting), true));
        assert_eq!(ask(&mut confirmations, &dev, Some(1)), (Err(Unconfirmed::Waiting), false), "asked once");
        assert_eq!(ask(&mut confirmations, &audit, Some(1)), (Err(Unconfirmed::Waiting), true));
        assert_eq!(confirmations.answer(|profile, _| *profile == dev, true), [(dev.clone(), Some(1))]);
        assert_eq!(ask(&mut confirmations, &dev, Some(1)), (Ok(()), false));
        assert_eq!(ask(&mut confirmations, &dev, Some(2)), (Err(Unconfirmed::Waiting), true), "another user");
        assert_eq!(ask(&mut confirmations, &audit, Some(1)).0, Err(Unconfirmed::Waiting), "another role");
        assert_eq!(confirmations.answer(|_, uid| uid == Some(1), false).len(), 2);
        assert_eq!(ask(&mut confirmations, &dev, Some(1)), (Err(Unconfirmed::Denied), false));
        confirmations.forget(&dev);
        assert_eq!(ask(&mut confirmations, &dev, Some(1)), (Err(Unconfirmed::Waiting), true));
    }
}
