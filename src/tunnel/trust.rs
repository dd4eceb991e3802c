//! What TLS on the port (`--tls`) needs of the host, and what a person has to know about it.

use std::{convert::Infallible, net::Ipv4Addr};

use super::{Error, Event, Inputs};
use crate::{
    remote::{
        files,
        helper::Helper,
        trust::{self, Trust},
    },
    tls::Identity,
};

/// Asks the host what `--tls` needs to know. A name that leads elsewhere would take tokens there.
pub(super) async fn ask(inputs: &Inputs, helper: &Helper) -> Result<Trust, Error> {
    let Some(tls) = &inputs.tls else { return Ok(Trust::default()) };
    let host = inputs.host();
    let said = trust::ask(helper, tls.name()).await;
    let trust = said.map_err(|source| Error::Helper { host: host.clone(), source })?;
    let Some(name) = tls.name() else { return Ok(trust) };
    if trust.addresses.is_empty() {
        inputs.observe(Event::Warning {
            message: format!(
                "{host} does not say where `{name}` leads; it has to be 127.0.0.1, or SDKs there do not find us (a line \
                 `127.0.0.1 {name}` in /etc/hosts will do)"
            ),
        });
    } else if !trust.addresses.contains(&Ipv4Addr::LOCALHOST.into())
        || !trust.addresses.iter().all(|address| address.is_loopback())
    {
        let found: Vec<_> = trust.addresses.iter().map(ToString::to_string).collect();
        return Err(Error::NameElsewhere { host, name: name.to_owned(), found: found.join(", ") });
    }
    Ok(trust)
}

/// Returns what the files on the host have to say of TLS.
pub(super) fn of<'a>(tls: Option<&'a Identity>, trust: &Trust) -> Option<files::Tls<'a>> {
    let tls = tls?;
    let in_directory = trust.has_directory;
    let trusted = tls.hashed_name().map(|name| files::Trusted { name, in_directory });
    Some(files::Tls { host: tls.host(), anchors: tls.anchors(), trusted })
}

/// Says what `--tls` does not do on this host.
pub(super) fn notice(inputs: &Inputs, port: Option<u16>) -> Option<String> {
    let host = inputs.host();
    inputs.tls.as_ref()?;
    if port.is_none() {
        return Some(format!("there is no port on {host} for `--tls` to protect"));
    }
    inputs.options.keep_config.then(|| {
        format!(
            "with `--remote-config keep`, boto3 and the AWS CLI on {host} ask at the port itself, where they trust \
             public CAs only: unless one signed the certificate, they get no credentials there with `--tls`"
        )
    })
}

/// Tells `observe` of clients that go away from the TLS handshake, once for each reason.
pub(super) async fn watch(tls: Option<&Identity>, host: &str, observe: impl Fn(Event)) -> Infallible {
    let Some(tls) = tls else { return std::future::pending().await };
    let mut refused = tls.refused();
    let (mut distrust, mut plain) = (false, false);
    loop {
        let now = *refused.borrow_and_update();
        if now.distrust && !std::mem::replace(&mut distrust, true) {
            let message = format!(
                "a program on {host} does not trust the certificate of `--tls` and got no credentials: boto3 and the AWS \
                 CLI trust public CAs only, unless they use our AWS_CONFIG_FILE"
            );
            observe(Event::Warning { message });
        }
        if now.plain && !std::mem::replace(&mut plain, true) {
            let message = format!(
                "a program on {host} came to the port without TLS and got no credentials: it may have the variables of an \
                 earlier tunnel"
            );
            observe(Event::Warning { message });
        }
        if refused.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
