//! Counts of what the engine does, in the text format of Prometheus.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

use super::Voice;

pub struct Traffic {
    registry: Registry,
    /// By voice and outcome: `stop`, `length`, `cancelled`, `failed`.
    answers: IntCounterVec,
    prompt_tokens: IntCounterVec,
    new_tokens: IntCounterVec,
    refused: IntCounterVec,
    pub(super) running: IntGauge,
    pub(super) waiting: IntGauge,
    first_token: Histogram,
    whole: Histogram,
}

const SECONDS: [f64; 10] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

impl Traffic {
    /// # Errors
    /// A name that is not one; none of these.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(
                &registry,
                IntCounterVec::new(Opts::new(name, help), labels)?,
            )
        };
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help)?);
        let histogram = |name: &str, help: &str| {
            register(
                &registry,
                Histogram::with_opts(HistogramOpts::new(name, help).buckets(SECONDS.to_vec()))?,
            )
        };
        Ok(Self {
            answers: counter(
                "flow_answers_total",
                "Answers by how they ended.",
                &["model", "finish"],
            )?,
            prompt_tokens: counter(
                "flow_prompt_tokens_total",
                "Tokens of prompts computed.",
                &["model"],
            )?,
            new_tokens: counter("flow_new_tokens_total", "Tokens written.", &["model"])?,
            refused: counter(
                "flow_refused_total",
                "Requests that were not taken, by HTTP status.",
                &["status"],
            )?,
            running: gauge("flow_answers_running", "Answers being written.")?,
            waiting: gauge("flow_answers_waiting", "Requests that wait for a place.")?,
            first_token: histogram(
                "flow_first_token_seconds",
                "From the request to the first token.",
            )?,
            whole: histogram(
                "flow_answer_seconds",
                "From the request to the end of the answer.",
            )?,
            registry,
        })
    }

    pub(super) fn started(&self, voice: Voice, prompt_tokens: usize, after: Duration) {
        self.prompt_tokens
            .with_label_values(&[voice.name()])
            .inc_by(prompt_tokens as u64);
        self.first_token.observe(after.as_secs_f64());
    }

    pub(super) fn token(&self, voice: Voice) {
        self.new_tokens.with_label_values(&[voice.name()]).inc();
    }

    pub(super) fn ended(&self, voice: Voice, how: &str, after: Duration) {
        self.answers.with_label_values(&[voice.name(), how]).inc();
        self.whole.observe(after.as_secs_f64());
    }

    pub(super) fn refused(&self, status: u16) {
        self.refused
            .with_label_values(&[status.to_string().as_str()])
            .inc();
    }

    /// Everything counted so far.
    ///
    /// # Errors
    /// What the encoder refuses; nothing that is registered here.
    pub fn as_text(&self) -> Result<String, prometheus::Error> {
        let mut bytes = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

fn register<C: Collector + Clone + 'static>(
    registry: &Registry,
    collector: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(collector.clone()))?;
    Ok(collector)
}
