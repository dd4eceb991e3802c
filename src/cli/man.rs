//! `broker man`: the manual, made of the same descriptions as `--help`.

use std::process::ExitCode;

use clap::{Args, Command as Clap, CommandFactory as _};
use clap_complete::{ArgValueCandidates, CompletionCandidate};
use clap_mangen::Man;

use super::{
    Cli,
    failure::{Failure, Kind},
    terminal::Terminal,
};
use crate::printable::one_line;

/// Print the manual page of broker or of one of its commands.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  broker man connect | man -l -
  broker man > /usr/local/share/man/man1/broker.1")]
pub(super) struct Arguments {
    /// The command whose page it is (default: that of broker)
    #[arg(value_name = "COMMAND", add = ArgValueCandidates::new(commands))]
    command: Option<String>,
}

const FILES: &[(&str, &str)] = &[
    (
        "~/.config/broker/config.toml",
        "Defaults, sections of hosts and lists of hosts; $XDG_CONFIG_HOME/broker/config.toml where that is set.",
    ),
    ("~/.aws/config, ~/.aws/credentials", "Profiles, as the AWS CLI reads them."),
    ("~/.aws/sso/cache", "Sign-ins, shared with the AWS CLI."),
    ("~/.ssh/config, ~/.ssh/known_hosts", "As ssh reads them."),
    ("~/.local/state/broker", "The log of decisions, and the logs of tunnels in the background."),
];

const EXIT_STATUS: &[(&str, &str)] = &[
    ("0", "Done."),
    ("1", "Failed."),
    ("2", "Wrong usage or configuration."),
    ("3", "A login is needed."),
    ("4", "The host key was refused."),
    ("5", "The host was not reached, or did not let us in."),
    ("6", "The host forwards nothing."),
    ("7", "AWS, or what a host may get, denies the role."),
    ("130", "Interrupted."),
    (
        "255",
        "A failure of ours where a shell or command on the host decides the status; its kind is in the last line.",
    ),
];

fn commands() -> Vec<CompletionCandidate> {
    Cli::command().get_subcommands().map(|command| CompletionCandidate::new(command.get_name())).collect()
}

/// Runs `broker man`.
pub(super) fn run(arguments: &Arguments, terminal: &Terminal) -> Result<ExitCode, Failure> {
    let mut whole = Cli::command();
    whole.build();
    let page = match &arguments.command {
        None => page(&whole, true),
        Some(name) => match whole.find_subcommand(name) {
            Some(command) => page(command, false),
            None => {
                let what = format!("`{}` is no command of broker", one_line(name));
                let hint = Some("see `broker --help`".to_owned());
                return Err(Failure::new(Kind::Usage, what).with_hint(hint));
            }
        },
    };
    page.and_then(|page| terminal.data(&page)).map_err(|e| Failure::new(Kind::Failed, e))?;
    Ok(ExitCode::SUCCESS)
}

fn page(command: &Clap, whole: bool) -> std::io::Result<Vec<u8>> {
    let examples = command.get_after_help().map(ToString::to_string);
    let version = env!("CARGO_PKG_VERSION");
    let man = Man::new(command.clone()).source(format!("broker {version}")).manual("broker");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if command.get_subcommands().any(|command| !command.is_hide_set()) {
        man.render_subcommands_section(&mut page)?;
    }
    let mut rest = String::new();
    if let Some(examples) = examples {
        // Lines as they are: they are to be typed.
        rest.push_str(".SH EXAMPLES\n.nf\n");
        for line in examples.lines().filter(|line| *line != "Examples:") {
            rest.push_str(&format!("\\&{}\n", escaped(line)));
        }
        rest.push_str(".fi\n");
    }
    let exits = whole || command.get_name() == "connect";
    for (title, entries) in [("EXIT STATUS", EXIT_STATUS), ("FILES", FILES)] {
        if exits {
            rest.push_str(&format!(".SH \"{title}\"\n"));
            for (name, text) in entries {
                rest.push_str(&format!(".TP\n{}\n{}\n", escaped(name), escaped(text)));
            }
        }
    }
    page.extend_from_slice(rest.as_bytes());
    Ok(page)
}

/// Takes the meaning that roff has for them from backslashes, and keeps dashes what can be typed.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\e")
        .replace('-', "\\-")
        .replace('~', "\\(ti")
        .replace('^', "\\(ha")
        .replace('\'', "\\(aq")
}
