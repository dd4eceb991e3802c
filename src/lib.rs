//! Gives AWS SDKs on a machine that you reach by SSH short-lived credentials, and leaves nothing there.
//!
//! One process logs in to IAM Identity Center, is itself the SSH client to the host, has sshd there listen on
//! `127.0.0.1`, and answers the SDKs that connect to it. It listens nowhere on this machine, and no secret of AWS
//! ever lies on the host's disk. When the process ends, access ends.
//!
//! # The way of one request
//!
//! | # | where | what happens |
//! |---|---|---|
//! | 1 | the host | an SDK sends `GET http://127.0.0.1:PORT/` with the token from its token file |
//! | 2 | sshd | opens a channel towards us on the connection that we hold |
//! | 3 | [`ssh::handler`] | is it a port that we asked for, from loopback, and is there room? Else it is refused |
//! | 4 | `tunnel::link` | gives the stream to [`serve`], through [`tls`] with `--tls`, and asks [`remote::helper`] whose connection it is |
//! | 5 | [`serve::front`] | reads the head, bounded, and makes an [`Ask`](serve::front::Ask) of it or a refusal |
//! | 6 | [`creds::grant`] | does this token open this path for this user? |
//! | 7 | [`creds::cache`] | credentials from memory; only where there are none, wait for the one flight that [`aws`] makes |
//! | 8 | `serve::reply` | the body, wiped when it is sent; the decision is in [`audit`] |
//!
//! Steps 4 and 5 go on at the same time, and nothing is answered before both are done. No request waits for AWS
//! while something valid is in memory, and none waits for a person.
//!
//! # The way of one tunnel
//!
//! `cli::defaults` adds to what was typed what our configuration file says, in the words of the command line. Then
//! `cli::connect` plans everything without a network ([`config`]), signs in and gets the first credentials of
//! every role ([`aws::session`]): what is wrong so far is told before any host sees us. Then `tunnel::link`
//! connects ([`ssh::dial`], [`ssh::session`], [`ssh::auth`]), asks for the forward and starts the helper at the
//! same time, reads on the host who listens there ([`remote::sockets`]), and sends a random word through the port
//! that must come out at our end. Only then is anybody served, and only after that do files lie on the host
//! ([`remote::files`], [`remote::install`]) and does a shell or a command run with our variables in its environment.
//!
//! A link that is lost is replaced whole (`tunnel::reconnect`): grants, credentials, port and tokens outlive it, and
//! whatever came through it dies with it.
//!
//! The end goes the other way round, within two seconds whatever the host does: revoke every grant, remove the
//! files, say goodbye to the helper, disconnect. If we cannot, the helper removes the files by itself: at once when
//! the connection ends, and within 45 s when nothing is heard from us any more.
//! With `--linger` role credentials, which lie in files all the time then, are left out of that: the helper leaves a
//! process that removes them when their time is over.
//!
//! # Rooms, and who may know whom
//!
//! `cli → tunnel → {remote → ssh, serve → creds ← aws}`: imports go downwards only, and `tests/architecture.rs`
//! holds the whole table with a reason for each line.
//!
//! | room | owns | does not know |
//! |---|---|---|
//! | [`cli`] | every word that is printed or asked, signals, exit codes | |
//! | [`config`] | flags, environment, files (ours too) → one checked [`Plan`](config::Plan) | which options there are, and how any of it is run |
//! | [`tunnel`] | one host's life: the order of its start, what is watched meanwhile, the order of its end | AWS, the terminal |
//! | [`remote`] | what lies on the host, its removal, and what the host tells about itself | what is served there |
//! | [`ssh`] | one client connection that a server can neither stall nor make accept anything | AWS, HTTP |
//! | [`serve`] | HTTP over any stream of bytes | SSH, AWS |
//! | [`creds`] | grants, who may use them, how fresh credentials are, one flight at a time | AWS, HTTP, SSH |
//! | [`aws`] | profiles, sign-in, the token cache shared with the AWS CLI, the calls to AWS | SSH, serving |
//! | [`control`] | the private socket through which another terminal looks at a tunnel and steers it | AWS, SSH, what a request leads to |
//! | leaves: [`audit`], [`backoff`], [`caller`], [`causes`], [`clock`], [`human`], [`names`], [`printable`], [`private_fs`], [`random`], [`tasks`], [`tls`] | one thing each | any room |
//!
//! `russh` is named only in [`ssh`], the crates of AWS only in [`aws`], `hyper` only in [`serve`] and for the
//! callback of the login, `clap` only in [`cli`].
//!
//! # What holds everywhere
//!
//! * Secrets have types without `Clone`, `Display` or `Serialize` ([`creds::secret`]), and no log, error or argument
//!   list can hold one.
//! * Whatever waits for a network, a person or a child has a deadline, and whatever runs has an owner who joins it:
//!   no task is detached, and a panic comes up where the task was started. russh's own loop is the exception; it
//!   ends with its transport, which dropping a session kills. Threads in libraries that may block for ever (keyring,
//!   Kerberos) are left behind when they are late; they hold nothing that anybody waits for.
//! * A host, a server and a neighbour on the host are hostile until shown otherwise: their bytes are counted, their
//!   text passes [`printable`] before anybody sees it, and every channel is emptied whether or not anybody reads it.
//! * There is one thread for all of it; what blocks goes elsewhere.

#![forbid(unsafe_code)]
#![allow(rustdoc::private_intra_doc_links, reason = "this page is a map for whoever reads the source")]

mod audit;
mod aws;
mod backoff;
mod caller;
mod causes;
mod cli;
mod clock;
mod config;
mod control;
mod creds;
mod human;
mod names;
mod printable;
mod private_fs;
mod random;
mod remote;
mod serve;
mod ssh;
mod tasks;
mod tls;
mod tunnel;

/// Runs `broker` with these arguments, the first of which is the program's name, and returns its exit code.
pub fn main(arguments: impl IntoIterator<Item = std::ffi::OsString>) -> std::process::ExitCode {
    cli::main(arguments)
}
