//! What happens inside, under `-v`: a line of text, or an event like every other.

use std::fmt;

use serde_json::{Map, Value};
use tracing::{
    Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    Layer,
    filter::Targets,
    layer::{Context, SubscriberExt as _},
    util::SubscriberInitExt as _,
};

use super::{LogFormatArgument, Output, stderr::Stderr, terminal::json_line};
use crate::clock::Clock;

/// Sends our own log lines to stderr under `-v`. Other crates' lines stay out: some print requests at debug level.
pub(super) fn start(output: &Output, stderr: Stderr) {
    let level = match output.verbose {
        0 => return,
        1 => Level::DEBUG,
        _ => Level::TRACE,
    };
    let ours = Targets::new().with_target("broker", level);
    let registry = tracing_subscriber::registry();
    // Fails only when a subscriber is there already, which then gets the lines.
    match output.log_format {
        LogFormatArgument::Text => {
            let lines = tracing_subscriber::fmt::layer().with_writer(move || stderr.clone()).with_ansi(false);
            drop(registry.with(lines.with_filter(ours)).try_init());
        }
        LogFormatArgument::Json => {
            let lines = JsonLines { stderr, clock: Clock::system() };
            drop(registry.with(lines.with_filter(ours)).try_init());
        }
    }
}

/// Writes each line as an event `log`.
struct JsonLines {
    stderr: Stderr,
    clock: Clock,
}

impl<S: Subscriber> Layer<S> for JsonLines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let about = event.metadata();
        let line = [
            ("level", about.level().as_str().to_ascii_lowercase().into()),
            ("target", about.target().into()),
            ("message", fields.message.into()),
            ("fields", fields.others.into()),
        ];
        self.stderr.write(json_line("log", line, &self.clock).as_bytes());
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Map<String, Value>,
}

impl Fields {
    fn add(&mut self, field: &Field, value: Value) {
        self.others.insert(field.name().to_owned(), value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            _ => self.add(field, format!("{value:?}").into()),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            _ => self.add(field, value.into()),
        }
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }
}
