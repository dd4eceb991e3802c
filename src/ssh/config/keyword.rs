//! Every keyword of ssh_config(5), and what we do with it.

/// What one keyword means to us.
#[derive(Clone, Copy, Debug)]
pub(super) enum Keyword {
    Host,
    Match,
    Include,
    IdentityFile,
    CertificateFile,
    IgnoreUnknown,
    SendEnv,
    /// `RefuseConnection`: whoever wrote it wants no connection here.
    RefuseConnection,
    /// Honoured: the first value wins.
    Value(&'static str, Syntax),
    /// `ProxyJump` and `ProxyCommand`: the first of either wins.
    Proxy(&'static str),
    /// Ignored with a word about it where it would have made a difference.
    Ignored(Ignored),
    /// Of no consequence to us: it tunes what we do in our own way, or concerns what we never do.
    Silent,
}

/// A keyword that we ignore, but not silently.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ignored {
    /// The keyword as ssh_config(5) spells it.
    pub(super) name: &'static str,
    /// Whether these arguments ask for something that will be missed.
    pub(super) missed: fn(&[String]) -> bool,
    /// Whether later lines add to earlier ones, rather than the first one winning.
    pub(super) accumulates: bool,
    /// All of these share one line: they make something more comfortable, and everything works without. Not worth a word
    /// when it is the system's file that sets them, for everybody.
    pub(super) comfort: bool,
}

/// What the arguments of a keyword must look like.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Syntax {
    Text,
    Port,
    Flag,
    Strict,
    Family,
    Time,
    Count,
    Canonicalize,
    Tty,
    Escape,
    /// `NAME=VALUE`, one or more.
    Variables,
    /// A line for a shell, as it stands.
    Command,
    Files,
    Agent,
    Pubkey,
    Level,
    /// `SIZE [TIME]`
    Rekey,
}

impl Syntax {
    /// Says what is wrong with `args`, in lines that do not apply too, as OpenSSH does.
    pub(super) fn check(self, args: &[String]) -> Result<(), String> {
        if self == Self::Command {
            return Ok(());
        }
        if args.is_empty() || args.iter().any(String::is_empty) {
            return Err("an argument is missing".to_owned());
        }
        if self == Self::Files {
            let none = args.iter().any(|arg| arg.eq_ignore_ascii_case("none"));
            return if none && args.len() > 1 { Err("`none` must stand alone".to_owned()) } else { Ok(()) };
        }
        if self == Self::Variables {
            let bad = args.iter().find(|arg| !arg.contains('='));
            return bad.map_or(Ok(()), |arg| Err(format!("`{arg}` has no `=`")));
        }
        if self == Self::Rekey {
            return rekey(args)
                .map(drop)
                .ok_or_else(|| format!("`{}` is no value that it can have", args.join(" ")));
        }
        let [arg] = args else {
            return Err("there are too many arguments".to_owned());
        };
        let valid = match self {
            Self::Text | Self::Files | Self::Variables | Self::Command | Self::Rekey => true,
            Self::Level => LEVELS.iter().any(|level| arg.eq_ignore_ascii_case(level)),
            Self::Tty => super::wishes::tty(arg).is_some(),
            Self::Escape => super::wishes::escape(arg).is_some(),
            Self::Port => super::destination::port(arg).is_some(),
            Self::Flag => flag(arg).is_some(),
            Self::Strict => strict(arg).is_some(),
            Self::Family => family(arg).is_some(),
            Self::Time => time(arg).is_some(),
            Self::Pubkey => pubkey(arg).is_some(),
            Self::Count => count(arg).is_some(),
            Self::Canonicalize => flag(arg).is_some() || arg.eq_ignore_ascii_case("always"),
            Self::Agent => match arg.strip_prefix('$') {
                Some(name) if !name.starts_with('{') => {
                    !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
                }
                _ => true,
            },
        };
        if valid { Ok(()) } else { Err(format!("`{arg}` is no value that it can have")) }
    }
}

/// Reads `yes`, `no`, `true` or `false`.
pub(super) fn flag(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" => Some(true),
        "no" | "false" => Some(false),
        _ => None,
    }
}

/// A value of `StrictHostKeyChecking`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Strict {
    Yes,
    Ask,
    AcceptNew,
    Off,
}

pub(super) fn strict(text: &str) -> Option<Strict> {
    match text.to_ascii_lowercase().as_str() {
        "yes" | "true" => Some(Strict::Yes),
        "ask" => Some(Strict::Ask),
        "accept-new" => Some(Strict::AcceptNew),
        "no" | "off" | "false" => Some(Strict::Off),
        _ => None,
    }
}

pub(super) fn family(text: &str) -> Option<crate::ssh::target::AddressFamily> {
    use crate::ssh::target::AddressFamily;
    match text.to_ascii_lowercase().as_str() {
        "any" => Some(AddressFamily::Any),
        "inet" => Some(AddressFamily::Inet),
        "inet6" => Some(AddressFamily::Inet6),
        _ => None,
    }
}

/// Reads a count, 0 to 2³¹ − 1.
pub(super) fn count(text: &str) -> Option<u32> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|count| i32::try_from(*count).is_ok())
}

/// The values of `LogLevel`; the first ones hide what a server says at the login.
const LEVELS: [&str; 9] =
    ["quiet", "fatal", "error", "info", "verbose", "debug", "debug1", "debug2", "debug3"];

/// Whether this `LogLevel` hides what is said for information.
pub(super) fn is_quiet(level: &str) -> bool {
    LEVELS.iter().take(3).any(|quiet| level.eq_ignore_ascii_case(quiet))
}

/// Reads a `RekeyLimit`: bytes and seconds, 0 for what is not limited.
pub(super) fn rekey(args: &[String]) -> Option<(u64, u32)> {
    let (bytes, after) = match args {
        [bytes] => (bytes, None),
        [bytes, after] => (bytes, Some(after)),
        _ => return None,
    };
    let bytes = if bytes == "default" { 0 } else { scaled(bytes)? };
    let after = after.map_or(Some(0), |after| time(after))?;
    // OpenSSH's least.
    (bytes == 0 || bytes >= 16).then_some((bytes, after))
}

/// Reads a size such as `512M` or `1.5G`.
fn scaled(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty())
        || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    // More digits than these say nothing more.
    let fraction = fraction.get(..6).unwrap_or(fraction);
    let part = if fraction.is_empty() { 0 } else { fraction.parse::<u64>().ok()? };
    let part = part.checked_mul(scale)? / 10_u64.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_mul(scale)?.checked_add(part)
}

/// Reads a time such as `90`, `1m30s` or `none`, in seconds; `none` is 0.
pub(super) fn time(text: &str) -> Option<u32> {
    if text == "none" {
        return Some(0);
    }
    let mut total: u64 = 0;
    let mut seconds_seen = false;
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, behind) = rest.split_at(end);
        let mut value: u64 = if number.is_empty() { return None } else { number.parse().ok()? };
        // Fractions of a second are allowed and dropped.
        let (fraction, behind) = match behind.strip_prefix('.') {
            Some(fraction) => {
                let end = fraction.find(|c: char| !c.is_ascii_digit()).unwrap_or(fraction.len());
                if end == 0 {
                    return None;
                }
                (true, fraction.get(end..)?)
            }
            None => (false, behind),
        };
        let mut units = behind.chars();
        let scale = match units.next().map(|unit| unit.to_ascii_lowercase()) {
            None | Some('s') if !seconds_seen => {
                seconds_seen = true;
                1
            }
            Some('m') => 60,
            Some('h') => 60 * 60,
            Some('d') => 24 * 60 * 60,
            Some('w') => 7 * 24 * 60 * 60,
            _ => return None,
        };
        if fraction && scale != 1 {
            return None;
        }
        value = value.checked_mul(scale)?;
        total = total.checked_add(value)?;
        rest = units.as_str();
    }
    if text.is_empty() { None } else { i32::try_from(total).ok().and_then(|total| u32::try_from(total).ok()) }
}

/// Returns what the keyword `name`, in lower case, means; `None` when OpenSSH knows none of that name.
pub(super) fn lookup(name: &str) -> Option<Keyword> {
    use Keyword::{Proxy, Silent, Value};
    Some(match name {
        "host" => Keyword::Host,
        "match" => Keyword::Match,
        "include" => Keyword::Include,
        "ignoreunknown" => Keyword::IgnoreUnknown,
        "refuseconnection" => Keyword::RefuseConnection,
        "identityfile" | "identityfile2" => Keyword::IdentityFile,
        "certificatefile" => Keyword::CertificateFile,

        "hostname" => Value("hostname", Syntax::Text),
        "user" => Value("user", Syntax::Text),
        "port" => Value("port", Syntax::Port),
        "hostkeyalias" => Value("hostkeyalias", Syntax::Text),
        "identitiesonly" => Value("identitiesonly", Syntax::Flag),
        "identityagent" => Value("identityagent", Syntax::Agent),
        "userknownhostsfile" => Value("userknownhostsfile", Syntax::Files),
        "globalknownhostsfile" => Value("globalknownhostsfile", Syntax::Files),
        "stricthostkeychecking" => Value("stricthostkeychecking", Syntax::Strict),
        "hashknownhosts" => Value("hashknownhosts", Syntax::Flag),
        "connecttimeout" => Value("connecttimeout", Syntax::Time),
        "addressfamily" => Value("addressfamily", Syntax::Family),
        "serveraliveinterval" => Value("serveraliveinterval", Syntax::Time),
        "serveralivecountmax" => Value("serveralivecountmax", Syntax::Count),
        "batchmode" => Value("batchmode", Syntax::Flag),
        "pubkeyauthentication" | "dsaauthentication" => Value("pubkeyauthentication", Syntax::Pubkey),
        "passwordauthentication" => Value("passwordauthentication", Syntax::Flag),
        "gssapiauthentication" => Value("gssapiauthentication", Syntax::Flag),
        "gssapidelegatecredentials" => Value("gssapidelegatecredentials", Syntax::Flag),
        "kbdinteractiveauthentication"
        | "challengeresponseauthentication"
        | "skeyauthentication"
        | "tisauthentication" => Value("kbdinteractiveauthentication", Syntax::Flag),
        "preferredauthentications" => Value("preferredauthentications", Syntax::Text),
        "numberofpasswordprompts" => Value("numberofpasswordprompts", Syntax::Count),
        "hostkeyalgorithms" => Value("hostkeyalgorithms", Syntax::Text),
        "kexalgorithms" => Value("kexalgorithms", Syntax::Text),
        "ciphers" => Value("ciphers", Syntax::Text),
        "macs" => Value("macs", Syntax::Text),
        "pubkeyacceptedalgorithms" | "pubkeyacceptedkeytypes" => {
            Value("pubkeyacceptedalgorithms", Syntax::Text)
        }
        "casignaturealgorithms" => Value("casignaturealgorithms", Syntax::Text),
        "bindaddress" => Value("bindaddress", Syntax::Text),
        "bindinterface" => Value("bindinterface", Syntax::Text),
        "canonicalizehostname" => Value("canonicalizehostname", Syntax::Canonicalize),
        "canonicaldomains" => Value("canonicaldomains", Syntax::Files),
        "canonicalizemaxdots" => Value("canonicalizemaxdots", Syntax::Count),
        "canonicalizefallbacklocal" => Value("canonicalizefallbacklocal", Syntax::Flag),
        "remotecommand" => Value("remotecommand", Syntax::Command),
        "requesttty" => Value("requesttty", Syntax::Tty),
        "escapechar" => Value("escapechar", Syntax::Escape),
        "setenv" => Value("setenv", Syntax::Variables),
        "sendenv" => Keyword::SendEnv,
        "tag" => Value("tag", Syntax::Text),
        "connectionattempts" => Value("connectionattempts", Syntax::Count),
        "tcpkeepalive" | "keepalive" => Value("tcpkeepalive", Syntax::Flag),
        "proxyusefdpass" => Value("proxyusefdpass", Syntax::Flag),

        "proxyjump" => Proxy("ProxyJump"),
        "proxycommand" => Proxy("ProxyCommand"),
        "revokedhostkeys" => Value("revokedhostkeys", Syntax::Files),
        "knownhostscommand" => Value("knownhostscommand", Syntax::Command),
        "requiredrsasize" => Value("requiredrsasize", Syntax::Count),
        "rekeylimit" => Value("rekeylimit", Syntax::Rekey),
        "loglevel" => Value("loglevel", Syntax::Level),

        // What runs beside the session.
        "localforward" => ignored("LocalForward", always, true),
        "remoteforward" => ignored("RemoteForward", always, true),
        "dynamicforward" => ignored("DynamicForward", always, true),
        "forwardagent" => ignored("ForwardAgent", on, false),
        "forwardx11" => ignored("ForwardX11", on, false),
        "tunnel" => ignored("Tunnel", on, false),
        "permitlocalcommand" => ignored("PermitLocalCommand", on, false),
        // What the session is.
        "sessiontype" => ignored("SessionType", |args| !is(args, "default"), false),
        "stdinnull" => ignored("StdinNull", on, false),
        "forkafterauthentication" => ignored("ForkAfterAuthentication", on, false),
        // How we log in.
        "pkcs11provider" | "smartcarddevice" => ignored("PKCS11Provider", on, false),
        "securitykeyprovider" => ignored("SecurityKeyProvider", |args| !is(args, "internal"), false),
        "hostbasedauthentication" => ignored("HostbasedAuthentication", on, false),
        // How we get there.
        "checkhostip" => ignored("CheckHostIP", on, false),
        "canonicalizepermittedcnames" => ignored("CanonicalizePermittedCNAMEs", on, false),
        "nohostauthenticationforlocalhost" => ignored("NoHostAuthenticationForLocalhost", on, false),

        // What makes it more comfortable. We are our own multiplexer, and compress nothing.
        "addkeystoagent" => comfort("AddKeysToAgent", on),
        "channeltimeout" => comfort("ChannelTimeout", on),
        "compression" => comfort("Compression", on),
        "controlpath" => comfort("ControlPath", on),
        "enableescapecommandline" => comfort("EnableEscapeCommandline", on),
        "fingerprinthash" => comfort("FingerprintHash", |args| !is(args, "sha256")),
        "ipqos" => comfort("IPQoS", on),
        "kbdinteractivedevices" => comfort("KbdInteractiveDevices", on),
        "obscurekeystroketiming" => comfort("ObscureKeystrokeTiming", on),
        "updatehostkeys" => comfort("UpdateHostKeys", on),
        "usekeychain" => comfort("UseKeychain", on),
        "verifyhostkeydns" => comfort("VerifyHostKeyDNS", on),
        "versionaddendum" => comfort("VersionAddendum", on),
        "visualhostkey" => comfort("VisualHostKey", on),

        // It goes with another one that is named, our own forward is the product's, the rest is cosmetic.
        "clearallforwardings"
        | "controlmaster"
        | "controlpersist"
        | "enablesshkeysign"
        | "exitonforwardfailure"
        | "forwardx11timeout"
        | "forwardx11trusted"
        | "gatewayports"
        | "hostbasedacceptedalgorithms"
        | "hostbasedkeytypes"
        | "localcommand"
        | "logverbose"
        | "permitremoteopen"
        | "streamlocalbindmask"
        | "streamlocalbindunlink"
        | "syslogfacility"
        | "tunneldevice"
        | "warnweakcrypto"
        | "xauthlocation" => Silent,
        // Deprecated or unsupported by OpenSSH itself.
        "afstokenpassing"
        | "cipher"
        | "compressionlevel"
        | "fallbacktorsh"
        | "globalknownhostsfile2"
        | "kerberosauthentication"
        | "kerberostgtpassing"
        | "protocol"
        | "rhostsauthentication"
        | "rhostsrsaauthentication"
        | "rsaauthentication"
        | "useprivilegedport"
        | "userknownhostsfile2"
        | "useroaming"
        | "usersh" => Silent,
        // Distributions' and Apple's own.
        "gssapiclientidentity"
        | "gssapikexalgorithms"
        | "gssapikeyexchange"
        | "gssapirenewalforcesrekey"
        | "gssapiserveridentity"
        | "gssapitrustdns"
        | "protocolkeepalives"
        | "setuptimeout" => Silent,
        _ => return None,
    })
}

const fn ignored(name: &'static str, missed: fn(&[String]) -> bool, accumulates: bool) -> Keyword {
    Keyword::Ignored(Ignored { name, missed, accumulates, comfort: false })
}

const fn comfort(name: &'static str, missed: fn(&[String]) -> bool) -> Keyword {
    Keyword::Ignored(Ignored { name, missed, accumulates: false, comfort: true })
}

fn always(_: &[String]) -> bool {
    true
}

/// Parses `PubkeyAuthentication`, whose other values say how signatures are bound to the host.
pub(super) fn pubkey(text: &str) -> Option<bool> {
    match text {
        "unbound" | "host-bound" => Some(true),
        _ => flag(text),
    }
}

/// Returns whether the arguments are anything but `no`, `false` and `none`.
pub(super) fn on(args: &[String]) -> bool {
    !off(args)
}

fn off(args: &[String]) -> bool {
    is(args, "no") || is(args, "false") || is(args, "none")
}

fn is(args: &[String], value: &str) -> bool {
    matches!(args, [arg] if arg.eq_ignore_ascii_case(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_read_as_openssh_reads_them() {
        for (text, seconds) in [
            ("0", Some(0)),
            ("90", Some(90)),
            ("1m30s", Some(90)),
            ("1M30", Some(90)),
            ("1h", Some(3600)),
            ("1w1d", Some(691_200)),
            ("1.5", Some(1)),
            ("none", Some(0)),
            ("", None),
            ("1.5m", None),
            ("1.", None),
            ("-1", None),
            ("1x", None),
            ("s", None),
            ("1s1s", None),
            ("2147483647", Some(2_147_483_647)),
            ("2147483648", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(time(text), seconds, "{text}");
        }
    }

    #[test]
    fn limits_of_keys_are_read_as_openssh_reads_them() {
        for (text, limit) in [
            ("1G", Some((1 << 30, 0))),
            ("512m 10m", Some((512 << 20, 600))),
            ("default none", Some((0, 0))),
            ("0 1h", Some((0, 3600))),
            ("1.5K", Some((1536, 0))),
            (".5k", Some((512, 0))),
            ("16", Some((16, 0))),
            ("15", None),
            ("none", None),
            ("1X", None),
            ("-1", None),
            ("1G 1x", None),
            ("1G 1h 1", None),
            ("99999999999999999999", None),
        ] {
            let args: Vec<_> = text.split(' ').map(str::to_owned).collect();
            assert_eq!(rekey(&args), limit, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_value_or_not(text in "\\PC{0,12}") {
            for syntax in [Syntax::Port, Syntax::Flag, Syntax::Strict, Syntax::Family, Syntax::Time, Syntax::Count,
                           Syntax::Files, Syntax::Agent, Syntax::Rekey] {
                drop(syntax.check(std::slice::from_ref(&text)));
            }
        }
    }
}
