//! Which host, as commands other than `connect` are told: what an `ssh` user types.

use std::{path::PathBuf, sync::Arc};

use clap::Args;

use super::{
    Output,
    connect::{host_key, usage},
    failure::{Failure, Kind},
    terminal::Terminal,
};
use crate::{
    config::{self, Environment, Flags},
    human::Human,
    ssh::{host_keys::KnownHostKeys, session::HostKeys, target::Target},
    tunnel::{self, Visit},
};

/// How to reach a host.
#[derive(Args, Clone, Debug)]
pub(super) struct HowToReach {
    /// SSH port of the host
    #[arg(short = 'P', long, value_name = "PORT")]
    port: Option<u16>,

    /// User name on the host
    #[arg(short = 'l', long, value_name = "USER")]
    login_name: Option<String>,

    /// Private key to authenticate with; repeat for more
    #[arg(short = 'i', long = "identity", value_name = "FILE")]
    identities: Vec<PathBuf>,

    /// ssh_config to read instead of ~/.ssh/config and /etc/ssh/ssh_config, or `none`
    #[arg(short = 'F', long = "ssh-config", value_name = "FILE")]
    ssh_config: Option<PathBuf>,

    /// An ssh_config setting that wins over the files, as `-o` of ssh
    #[arg(short = 'o', long = "ssh-option", value_name = "KEY=VALUE", value_parser = ssh_option)]
    ssh_options: Vec<(String, String)>,

    /// Jump hosts to go through, each as ssh_config knows it; `none` goes directly
    #[arg(short = 'J', long = "jump", value_name = "[USER@]HOST[:PORT],…")]
    jump: Option<String>,

    /// Use IPv4 only
    #[arg(short = '4', long, conflicts_with = "inet6")]
    inet4: bool,

    /// Use IPv6 only
    #[arg(short = '6', long)]
    inet6: bool,

    /// The only key that the host may have; known_hosts is not asked
    #[arg(long, value_name = "SHA256:…", value_parser = fingerprint)]
    host_key: Option<String>,

    /// Variable with a private key to try first; it is taken out of the environment before anything else starts
    #[arg(long, value_name = "NAME")]
    identity_env: Option<String>,

    /// Let the lists of algorithms in ssh_config and -o name broken ones (SHA-1, CBC) for this host; repeat for more
    #[arg(long = "dangerous-legacy-algorithms", value_name = "HOST")]
    dangerous_legacy: Vec<String>,
}

impl HowToReach {
    /// Returns the variable that holds a private key, where one is named.
    pub(super) fn identity_env(&self) -> Option<&str> {
        self.identity_env.as_deref()
    }

    /// Returns what was said about the way to `host`, and nothing else.
    pub(super) fn flags(&self, host: &str, batch: bool) -> Flags {
        Flags {
            host: host.to_owned(),
            ssh_port: self.port,
            login_name: self.login_name.clone(),
            identity_files: self.identities.clone(),
            ssh_config: self.ssh_config.clone(),
            ssh_options: self.ssh_options.clone(),
            jump: self.jump.clone(),
            inet4: self.inet4,
            inet6: self.inet6,
            host_key: self.host_key.clone(),
            dangerous_legacy: self.dangerous_legacy.clone(),
            identity_env: self.identity_env.clone(),
            batch,
            ..Flags::default()
        }
    }

    /// Resolves the host and says what ssh_config holds that we do not do.
    pub(super) fn target(
        &self,
        host: &str,
        output: &Output,
        environment: &Environment,
        terminal: &Terminal,
    ) -> Result<Target, Failure> {
        let flags = self.flags(host, output.batch);
        let mut warnings = Vec::new();
        let target = config::target(&flags, environment, &mut warnings).map_err(usage)?;
        for warning in warnings {
            terminal.warning(&warning);
        }
        Ok(target)
    }
}

/// Connects to the host for a look.
pub(super) async fn visit(target: &Target, terminal: &Arc<Terminal>) -> Result<Visit, Failure> {
    let human = Arc::clone(terminal) as Arc<dyn Human>;
    let keys = KnownHostKeys::load(target, Arc::clone(&human)).map_err(host_key)?;
    let keys = Arc::new(keys) as Arc<dyn HostKeys>;
    let observer = {
        let terminal = Arc::clone(terminal);
        Arc::new(move |event| terminal.event(&event)) as tunnel::Observer
    };
    let opening = Box::pin(Visit::open(target, &keys, &human, &observer));
    super::with_ticks(terminal, opening).await.map_err(super::connect::tunnel_failure)
}

/// Returns the failure of a command that was interrupted.
pub(super) fn interrupted() -> Failure {
    Failure::new(Kind::Interrupted, "interrupted")
}

fn fingerprint(text: &str) -> Result<String, String> {
    // 32 bytes in base64 without padding.
    let digest = text.strip_prefix("SHA256:").filter(|digest| digest.len() == 43);
    let valid = digest
        .is_some_and(|digest| digest.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'+' || b == b'/'));
    if valid {
        Ok(text.to_owned())
    } else {
        Err("not a fingerprint as `ssh-keygen -lf FILE` prints it (SHA256: and 43 characters)".to_owned())
    }
}

/// Parses what `-o` takes.
fn ssh_option(text: &str) -> Result<(String, String), String> {
    let (key, value) = text
        .split_once('=')
        .or_else(|| text.split_once(char::is_whitespace))
        .ok_or_else(|| "expected KEY=VALUE".to_owned())?;
    Ok((key.trim().to_owned(), value.trim().to_owned()))
}
