//! Conversations as prompts.

use crate::lm::{ChatTemplate, LmError, Message, Tokenizer};

/// The tokenizer and chat template of a model, shared by all threads.
pub struct Prompts {
    pub tokenizer: Tokenizer,
    template: ChatTemplate,
    /// The system message of the training; conversations without one get it.
    pub system: String,
}

impl Prompts {
    pub fn new(tokenizer: Tokenizer, template: ChatTemplate, system: String) -> Self {
        Self {
            tokenizer,
            template,
            system,
        }
    }

    /// The tokens of a conversation, open for the next answer.
    ///
    /// # Errors
    /// [`LmError::Template`] where the template refuses the messages.
    pub fn encode(&self, messages: &[Message]) -> Result<Vec<i64>, LmError> {
        let has_system = messages.first().is_some_and(|first| first.role == "system");
        let system =
            (!has_system && !self.system.is_empty()).then(|| Message::system(&self.system));
        let all: Vec<Message> = system.into_iter().chain(messages.iter().cloned()).collect();
        self.tokenizer.encode(&self.template.render(&all, true)?)
    }
}
