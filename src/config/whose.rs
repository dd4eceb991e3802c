//! Whose credentials are wanted: profiles, or a role of Identity Center that no profile names, and what is taken away
//! from them before they are handed out.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    str::FromStr,
};

use serde_json::{Value, json};

use super::{Environment, Error};
use crate::{
    aws::profile::{
        AssumeRole, Assumed, NotARoleArn, Profile, Profiles, Restriction, RoleArn, ServiceUrls, SessionKey,
        Source, SsoRole, SsoSession, StartUrl,
    },
    names::{AccountId, ProfileName, Region, Role, RoleName},
    printable::one_line,
    private_fs,
};

/// What AWS gives at most to a role that is assumed with the credentials of another role, in seconds.
const CHAINED: u32 = 3600;

/// How long an assumed role may last, in seconds.
const DURATIONS: std::ops::RangeInclusive<u32> = 900..=43_200;

/// What AWS reads of a session policy.
const LONGEST_POLICY: usize = 2048;

/// What the command line said.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wanted {
    pub(crate) profiles: Vec<String>,
    pub(crate) role: Option<WantedRole>,
    pub(crate) chain: Option<Chain>,
}

/// A role of Identity Center, named on the command line.
#[derive(Clone, Debug)]
pub(crate) struct WantedRole {
    pub(crate) account: String,
    pub(crate) role: String,
    pub(crate) through: Through,
}

/// Through which session a role is wanted.
#[derive(Clone, Debug)]
pub(crate) enum Through {
    /// `--sso-session`, or the only one there is.
    Session(Option<String>),
    /// `--start-url` and `--sso-region`.
    Portal { start_url: String, region: String },
}

/// One more AssumeRole, to hand out less.
#[derive(Clone, Debug)]
pub(crate) struct Chain {
    pub(crate) role_arn: String,
    pub(crate) duration: Option<String>,
    pub(crate) session_policies: Vec<String>,
    pub(crate) source_ip: Option<IpAddr>,
    /// Where the credentials go, for CloudTrail.
    pub(crate) destination: String,
}

/// What is wrong with `--role-arn` and its like.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ChainError {
    #[error("`--role-arn` cannot be used")]
    Role(#[from] NotARoleArn),
    #[error("`--duration {0}` is not a length of time (such as `15m` or `1h`)")]
    Duration(String),
    #[error("`--duration {0}` is not between 15 minutes and 12 hours")]
    DurationRange(String),
    #[error("the session policy cannot be read")]
    File(#[from] private_fs::Error),
    #[error("the session policy `{}` does not exist", .0.display())]
    NoFile(PathBuf),
    #[error("the session policy `{}` is no JSON object with a `Statement`", .0.display())]
    NotAPolicy(PathBuf),
    #[error("the session policy has {0} characters, and AWS reads at most {LONGEST_POLICY}")]
    TooLong(usize),
    #[error("there are two session policies in files, and AWS takes one")]
    Two,
}

impl ChainError {
    /// Returns the way out.
    pub(crate) fn hint(&self) -> Option<String> {
        match self {
            Self::File(error) => error.hint(),
            Self::NoFile(_) => Some("name a file, or a policy by its ARN".to_owned()),
            Self::TooLong(_) | Self::Two => Some("name further policies by their ARNs".to_owned()),
            Self::Role(_) | Self::Duration(_) | Self::DurationRange(_) | Self::NotAPolicy(_) => {
                Some("see `broker connect --help`".to_owned())
            }
        }
    }
}

/// Resolves what is wanted; what the person should know is added to `notices`.
pub(crate) fn profiles(
    wanted: &Wanted,
    environment: &Environment,
    notices: &mut Vec<String>,
) -> Result<Vec<Profile>, Error> {
    let all = environment.aws_profiles()?;
    let mut resolved = match &wanted.role {
        Some(role) => vec![direct(role, &all)?],
        None if wanted.profiles.is_empty() => vec![unnamed(&all, environment)?],
        None => named(&wanted.profiles, &all)?,
    };
    for profile in &mut resolved {
        if profile.region.is_none() {
            profile.region = environment
                .get("AWS_REGION")
                .or_else(|| environment.get("AWS_DEFAULT_REGION"))
                .and_then(|region| region.parse::<Region>().ok());
        }
        within_an_hour(&mut profile.source, &profile.name, notices);
        if let Some(chain) = &wanted.chain {
            let source = chained(chain, profile.source.clone(), environment, notices)?;
            profile.source = source;
        }
        if let Source::Keys(keys) = &profile.source
            && keys.are_long_lived()
        {
            notices.push(format!(
                "profile `{}` has long-lived keys ({}): they stay on this machine, and a session of them is handed out",
                profile.name, keys.place
            ));
        }
    }
    Ok(resolved)
}

fn named(names: &[String], all: &Profiles) -> Result<Vec<Profile>, Error> {
    let mut unique = Vec::<ProfileName>::new();
    for name in names {
        let name: ProfileName = name.parse()?;
        if !unique.contains(&name) {
            unique.push(name);
        }
    }
    let resolve = |name: &ProfileName| {
        all.resolve(name).map_err(|e| {
            let text = name.as_str();
            if text.parse::<u16>().is_ok() && !all.has(text) {
                Error::PortAsProfile { port: text.to_owned() }
            } else {
                Error::Profile(e)
            }
        })
    };
    unique.iter().map(resolve).collect()
}

/// What the AWS CLI would take without `--profile`; where that is nothing, the only profile there is.
fn unnamed(all: &Profiles, environment: &Environment) -> Result<Profile, Error> {
    let by_variable = environment.get("AWS_PROFILE").or_else(|| environment.get("AWS_DEFAULT_PROFILE"));
    let name: ProfileName = by_variable.unwrap_or("default").parse()?;
    let from_environment = || all.resolve_unnamed(&name);
    if by_variable.is_some() && !all.has(name.as_str()) {
        // A profile that does not exist is a mistake, whatever else there is.
        return Ok(all.resolve(&name)?);
    }
    match from_environment() {
        Ok(profile) => Ok(profile),
        Err(e) if by_variable.is_some() => Err(e.into()),
        Err(e) => {
            let known: Vec<String> = all.names().iter().map(ToString::to_string).collect();
            match all.default_choice() {
                Some(only) if only != name => Ok(all.resolve(&only)?),
                _ if matches!(e, crate::aws::profile::Error::NoSource { .. }) => {
                    Err(Error::NoProfile { path: environment.aws_files().config, known })
                }
                _ => Err(e.into()),
            }
        }
    }
}

/// Whether what counts where nothing is named comes from elsewhere than the profile whose name it bears.
pub(crate) fn is_ambient(name: &ProfileName, environment: &Environment) -> Result<bool, Error> {
    let all = environment.aws_profiles()?;
    let (named, unnamed) = (all.resolve(name), all.resolve_unnamed(name));
    Ok(!matches!((named, unnamed), (Ok(named), Ok(unnamed)) if named.source == unnamed.source))
}

fn direct(wanted: &WantedRole, all: &Profiles) -> Result<Profile, Error> {
    let account: AccountId = wanted.account.parse()?;
    let name: RoleName = wanted.role.parse()?;
    let session = match &wanted.through {
        Through::Session(Some(name)) => all.sso_session(name)?,
        Through::Session(None) => match all.session_names().as_slice() {
            [only] => all.sso_session(only)?,
            known => return Err(Error::WhichSession { known: known.to_vec() }),
        },
        Through::Portal { start_url, region } => SsoSession {
            name: SessionKey::StartUrl,
            start_url: start_url.parse::<StartUrl>().map_err(Error::StartUrl)?,
            region: region.parse()?,
            scopes: Vec::new(),
        },
    };
    Ok(Profile {
        // As `aws configure sso` calls it.
        name: format!("{name}-{account}").parse()?,
        region: None,
        output: None,
        source: Source::Sso(SsoRole { session, role: Role { account, name } }),
        urls: ServiceUrls::default(),
    })
}

/// Cuts roles that are assumed with the credentials of a role down to what AWS gives them.
fn within_an_hour(source: &mut Source, profile: &ProfileName, notices: &mut Vec<String>) {
    let Source::Assumed(assumed) = source else { return };
    if assumed.from.is_role() && assumed.role.duration.is_some_and(|seconds| seconds > CHAINED) {
        notices.push(format!(
            "profile `{profile}` asks for {} of role `{}`, but AWS gives a role that is assumed with another role's \
             credentials one hour at most: that is asked for, and renewed in time",
            hours(assumed.role.duration.unwrap_or(CHAINED)),
            assumed.role.arn
        ));
        assumed.role.duration = Some(CHAINED);
    }
    within_an_hour(&mut assumed.from, profile, notices);
}

fn hours(seconds: u32) -> String {
    match (seconds / 3600, seconds % 3600) {
        (hours, 0) => format!("{hours} h"),
        _ => format!("{} min", seconds / 60),
    }
}

fn chained(
    chain: &Chain,
    from: Source,
    environment: &Environment,
    notices: &mut Vec<String>,
) -> Result<Source, Error> {
    let arn = RoleArn::from_str(&chain.role_arn).map_err(ChainError::Role)?;
    let mut duration = chain.duration.as_deref().map(seconds).transpose()?;
    if from.is_role() && duration.is_some_and(|seconds| seconds > CHAINED) {
        notices.push(
            "AWS gives a role that is assumed with another role's credentials one hour at most, so `--duration` is \
             one hour; it is renewed in time"
                .to_owned(),
        );
        duration = Some(CHAINED);
    }
    let (policy, policy_arns) = policies(chain)?;
    let role = AssumeRole {
        arn,
        external_id: None,
        mfa_serial: None,
        duration,
        session_name: Some(clean(&format!("broker-{}", chain.destination))),
        restriction: Restriction { policy, policy_arns, source_identity: Some(clean(&environment.user)) },
    };
    let from = match from {
        // As for a role in a profile: the device of the keys is not asked for by a role that does not name it.
        Source::Keys(mut keys) => {
            keys.mfa_serial = keys.mfa_serial.filter(|_| keys.session_token.is_none());
            Source::Keys(keys)
        }
        other => other,
    };
    Ok(Source::Assumed(Box::new(Assumed { role, from })))
}

/// Makes any text what AWS takes for a session name: 2 to 64 of a few characters.
pub(crate) fn clean(text: &str) -> String {
    let name: String = text
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "_+=,.@-".contains(c) { c } else { '-' })
        .take(64)
        .collect();
    if name.len() < 2 { format!("broker{name}") } else { name }
}

/// Reads `3600`, `45m`, `1h` or `1h30m`.
fn seconds(text: &str) -> Result<u32, ChainError> {
    let seconds = parse_seconds(text).ok_or_else(|| ChainError::Duration(one_line(text)))?;
    if DURATIONS.contains(&seconds) { Ok(seconds) } else { Err(ChainError::DurationRange(one_line(text))) }
}

pub(crate) fn parse_seconds(text: &str) -> Option<u32> {
    let (mut sum, mut number) = (0u32, None::<u32>);
    for c in text.chars() {
        match (c.to_digit(10), number) {
            (Some(digit), _) => number = Some(number.unwrap_or(0).checked_mul(10)?.checked_add(digit)?),
            (None, Some(count)) => {
                let unit = match c {
                    's' => 1,
                    'm' => 60,
                    'h' => 3600,
                    _ => return None,
                };
                sum = sum.checked_add(count.checked_mul(unit)?)?;
                number = None;
            }
            (None, None) => return None,
        }
    }
    let has_units = text.contains(|c: char| c.is_ascii_alphabetic());
    match number {
        Some(_) if has_units => None,
        Some(count) => Some(count),
        None => has_units.then_some(sum),
    }
}

/// Returns the one inline policy and the ARNs of managed ones.
fn policies(chain: &Chain) -> Result<(Option<String>, Vec<String>), ChainError> {
    let mut arns = Vec::new();
    let mut inline: Option<Value> = None;
    for policy in &chain.session_policies {
        if policy.starts_with("arn:") {
            arns.push(policy.clone());
        } else if inline.is_some() {
            return Err(ChainError::Two);
        } else {
            inline = Some(policy_in(Path::new(policy))?);
        }
    }
    if let Some(ip) = chain.source_ip {
        // A denial counts whatever else allows; calls that AWS services make for us come from elsewhere.
        let only_from = json!({
            "Effect": "Deny",
            "Action": "*",
            "Resource": "*",
            "Condition": {
                "NotIpAddress": {"aws:SourceIp": ip.to_string()},
                "Bool": {"aws:ViaAWSService": "false"},
            },
        });
        let mut policy = inline.unwrap_or_else(|| {
            // A session policy allows nothing by itself; beside managed ones it must not allow more than they do.
            let all = json!({"Effect": "Allow", "Action": "*", "Resource": "*"});
            let allowed = if arns.is_empty() { vec![all] } else { Vec::new() };
            json!({"Version": "2012-10-17", "Statement": allowed})
        });
        match policy.get_mut("Statement") {
            Some(Value::Array(statements)) => statements.push(only_from),
            Some(single) => *single = json!([single.take(), only_from]),
            None => {}
        }
        inline = Some(policy);
    }
    let text = inline.map(|policy| policy.to_string());
    match &text {
        Some(text) if text.len() > LONGEST_POLICY => Err(ChainError::TooLong(text.len())),
        _ => Ok((text, arns)),
    }
}

fn policy_in(path: &Path) -> Result<Value, ChainError> {
    let bytes = private_fs::read_config(path)?.ok_or_else(|| ChainError::NoFile(path.to_owned()))?;
    let policy: Option<Value> = serde_json::from_slice(&bytes).ok();
    let has_statements =
        |policy: &Value| matches!(policy.get("Statement"), Some(Value::Array(_) | Value::Object(_)));
    policy.filter(has_statements).ok_or_else(|| ChainError::NotAPolicy(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read() {
        for (text, expected) in
            [("900", 900), ("15m", 900), ("1h", 3600), ("1h30m", 5400), ("3600s", 3600), ("12h", 43_200)]
        {
            assert_eq!(seconds(text).unwrap(), expected, "{text}");
        }
        for text in ["", "h", "1x", "1h30", "-1h", "9999999999h", "１５m", "1 h"] {
            assert!(matches!(seconds(text), Err(ChainError::Duration(_))), "{text}");
        }
        for text in ["1m", "13h", "0"] {
            assert!(matches!(seconds(text), Err(ChainError::DurationRange(_))), "{text}");
        }
    }

    fn chain(session_policies: &[&str], source_ip: Option<&str>) -> Chain {
        Chain {
            role_arn: "arn:aws:iam::111122223333:role/x".into(),
            duration: None,
            session_policies: session_policies.iter().map(ToString::to_string).collect(),
            source_ip: source_ip.map(|ip| ip.parse().unwrap()),
            destination: "h".into(),
        }
    }

    #[test]
    fn an_address_only_ever_takes_away() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("policy");
        private_fs::write(
            &file,
            br#"{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"s3:*","Resource":"*"}}"#,
        )
        .unwrap();
        let file = file.to_str().unwrap();
        let effects = |policies: &[&str]| {
            let (inline, arns) = policies_of(policies, Some("192.0.2.1"));
            let inline: Value = serde_json::from_str(&inline.unwrap()).unwrap();
            let list = inline["Statement"].as_array().unwrap().clone();
            let effects: Vec<String> =
                list.iter().map(|s| format!("{} {}", s["Effect"], s["Action"])).collect();
            (effects.join(", "), arns.len())
        };
        assert_eq!(effects(&[]), (r#""Allow" "*", "Deny" "*""#.into(), 0));
        assert_eq!(effects(&["arn:aws:iam::aws:policy/ReadOnlyAccess"]), (r#""Deny" "*""#.into(), 1));
        assert_eq!(effects(&[file]), (r#""Allow" "s3:*", "Deny" "*""#.into(), 0));
        assert_eq!(policies_of(&[], None), (None, Vec::new()));
        assert!(matches!(policies(&chain(&[file, file], None)), Err(ChainError::Two)));
        assert!(matches!(policies(&chain(&["/nonexistent"], None)), Err(ChainError::NoFile(_))));
        let garbage = directory.path().join("garbage");
        private_fs::write(&garbage, b"[]").unwrap();
        assert!(matches!(
            policies(&chain(&[garbage.to_str().unwrap()], None)),
            Err(ChainError::NotAPolicy(_))
        ));
        let long = format!(r#"{{"Statement":[{{"Sid":"{}"}}]}}"#, "x".repeat(LONGEST_POLICY));
        private_fs::write(&garbage, long.as_bytes()).unwrap();
        assert!(matches!(policies(&chain(&[garbage.to_str().unwrap()], None)), Err(ChainError::TooLong(_))));
    }

    #[test]
    fn any_text_becomes_a_session_name() {
        assert_eq!(clean("broker-ada@host.example:22"), "broker-ada@host.example-22");
        assert_eq!(clean("ü"), "broker-");
        assert_eq!(clean(&"x".repeat(100)).len(), 64);
    }

    fn policies_of(session_policies: &[&str], ip: Option<&str>) -> (Option<String>, Vec<String>) {
        policies(&chain(session_policies, ip)).unwrap()
    }
}
