//! `flow serve`: the model that a run has trained as an OpenAI-compatible server with a chat page.

use std::net::IpAddr;

use clap::Args;

use super::arguments::SpeakerArguments;
use super::error::{CliError, Exit};
use super::handover;
use super::output::Output;

/// Serve the model that a run has trained, and its base, with OpenAI's protocol and a chat page
///
/// The models are called `tuned` and `base`. Prints the address once it answers; ends on Ctrl-C or SIGTERM when the
/// answers under way are written, on a second signal at once.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    pub speaker: SpeakerArguments,

    /// The address to listen on; others than this machine's own need an API key
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    pub host: IpAddr,

    /// The port; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000)]
    pub port: u16,

    /// Requests must carry this key
    #[arg(long, value_name = "KEY", env = "FLOW_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,

    /// Answers written together
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = super::bench::positive)]
    pub slots: usize,

    /// Requests that may wait for a slot; more are answered with status 429
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = super::bench::positive)]
    pub queue: usize,

    /// The most tokens of prompt and answer together; never more than the model's context
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = super::bench::positive)]
    pub context: usize,

    /// Connections open at once; more are answered with status 503
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = super::bench::positive)]
    pub connections: usize,

    /// How long a client may take to send a request, or to take a part of an answer, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..))]
    pub patience: u64,
}

/// Serves; only `flow-lm` can.
pub type ModelServe = fn(&Arguments, &Output) -> Result<Exit, CliError>;

pub fn run(
    arguments: &Arguments,
    model: Option<ModelServe>,
    output: &Output,
) -> Result<Exit, CliError> {
    let key = arguments.api_key.as_deref();
    if key.is_some_and(|key| key.trim().is_empty()) {
        return Err(CliError::wrong(
            "the API key is empty",
            "give one, or unset `FLOW_API_KEY`",
        ));
    }
    if key.is_none() && !arguments.host.is_loopback() {
        return Err(CliError::wrong(
            format!("others could use the model at {}", arguments.host),
            "give a key with `--api-key` or `FLOW_API_KEY`, or leave out `--host` to serve this machine only",
        ));
    }
    match model {
        Some(model) => model(arguments, output),
        None => Err(handover::to_language_model()),
    }
}

#[cfg(feature = "torch")]
pub use server::with_model;

#[cfg(feature = "torch")]
mod server {
    use std::time::Duration;

    use tokio::net::TcpListener;
    use tokio::signal::unix::{SignalKind, signal};

    use super::Arguments;
    use crate::chat::Limits;
    use crate::chat::http::{About, Bounds, serve};
    use crate::cli::error::{CliError, Exit};
    use crate::cli::output::Output;
    use crate::cli::speaker;

    /// The [`super::ModelServe`] of `flow-lm`.
    pub fn with_model(arguments: &Arguments, output: &Output) -> Result<Exit, CliError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()?;
        // An address that is taken shows before the model is loaded.
        let address = (arguments.host, arguments.port);
        let listener = runtime
            .block_on(TcpListener::bind(address))
            .map_err(|error| {
                let place = format!("{}:{}", arguments.host, arguments.port);
                CliError::failed(
                    format!("cannot listen on {place}: {error}"),
                    Some("choose another with `--port`; 0 takes a free one".to_owned()),
                )
            })?;
        let limits = Limits {
            slots: arguments.slots,
            queue: arguments.queue,
            context: arguments.context,
        };
        let (engine, title) = speaker::start(&arguments.speaker, limits, output)?;
        output.tell(&title);
        let about = About {
            title,
            created: jiff::Timestamp::now().as_second(),
        };
        let bounds = Bounds {
            connections: arguments.connections,
            patience: Duration::from_secs(arguments.patience),
        };
        let told = *output;
        runtime.block_on(async {
            let stop = stop(told)?;
            output.print(&format!("http://{}", listener.local_addr()?))?;
            let key = arguments.api_key.clone();
            serve(listener, engine, about, key, bounds, stop).await;
            Ok::<_, CliError>(())
        })?;
        Ok(Exit::Ok)
    }

    /// Done at the first signal; the second ends the process.
    fn stop(output: Output) -> std::io::Result<impl Future<Output = ()> + Send + 'static> {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut next = async move || {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        Ok(async move {
            next().await;
            output.tell("stopping: answers under way are finished; once more to end at once");
            tokio::spawn(async move {
                next().await;
                std::process::exit(130);
            });
        })
    }
}
