//! One answer: what is asked for, and what comes back piece by piece.

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::Voice;
use crate::lm::{Finish, SampleOptions};

/// How an answer is written.
#[derive(Clone, Debug, PartialEq)]
pub struct Decoding {
    pub max_new_tokens: usize,
    pub sample: SampleOptions,
    /// The answer ends before the first of these.
    pub stops: Vec<String>,
}

impl Default for Decoding {
    /// The settings of the original's chat.
    fn default() -> Self {
        Self {
            max_new_tokens: 512,
            sample: SampleOptions {
                temperature: 0.7,
                top_p: 0.8,
                top_k: 20,
                repetition_penalty: 1.1,
                no_repeat_ngram: 4,
                ..SampleOptions::default()
            },
            stops: Vec::new(),
        }
    }
}

/// A prompt for the engine.
pub struct Job {
    pub voice: Voice,
    pub prompt: Vec<i64>,
    pub decoding: Decoding,
    pub(super) pieces: UnboundedSender<Piece>,
}

/// What the engine says of a job, in order; `Done` and `Failed` are the last.
#[derive(Clone, Debug, PartialEq)]
pub enum Piece {
    Text(String),
    Done {
        finish: Finish,
        /// New tokens, without the one that ends the answer.
        tokens: usize,
    },
    Failed(String),
}

/// The receiving end. Whoever drops it ends the job.
pub struct Answer {
    pub prompt_tokens: usize,
    pub pieces: UnboundedReceiver<Piece>,
}

impl Job {
    pub fn new(voice: Voice, prompt: Vec<i64>, decoding: Decoding) -> (Self, Answer) {
        // Bounded by the job's own `max_new_tokens`.
        let (sender, receiver) = unbounded_channel();
        let answer = Answer {
            prompt_tokens: prompt.len(),
            pieces: receiver,
        };
        let job = Self {
            voice,
            prompt,
            decoding,
            pieces: sender,
        };
        (job, answer)
    }
}
