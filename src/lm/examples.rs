//! Conversations to token ids with labels on what the assistant says.

use std::ops::Range;

use rayon::prelude::*;

use super::chat::{ChatTemplate, Message};
use super::loss::IGNORED;
use super::tokenizer::Tokenizer;
use super::{LanguageModel, LmError};

/// A conversation to learn from.
#[derive(Clone, Debug)]
pub struct Conversation {
    /// Names the row in messages.
    pub id: String,
    pub messages: Vec<Message>,
}

/// A sequence to train on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    pub id: String,
    pub ids: Vec<i64>,
    /// One per token: the token itself where it is trained, else [`IGNORED`].
    pub labels: Vec<i64>,
}

/// Examples and what was lost on the way.
#[derive(Debug)]
pub struct Prepared {
    pub examples: Vec<Example>,
    /// Examples that were cut to the maximum length.
    pub truncated: usize,
    /// Ids of conversations of which nothing is left to train on.
    pub rejected: Vec<String>,
}

impl Example {
    /// Tokens that count for the loss: the first of a sequence has nothing to be predicted from.
    pub fn trained(&self) -> usize {
        let labels = self.labels.iter().skip(1);
        labels.filter(|&&label| label != IGNORED).count()
    }
}

/// Renders and tokenises conversations with the model's own template. Everything of the assistant's turns is trained, up
/// to and with the token that ends the turn; nothing else is.
///
/// # Errors
/// [`LmError::Template`] where the template refuses a conversation, rewrites earlier turns, or ends no turn.
pub fn prepare_examples(
    model: &LanguageModel,
    conversations: &[Conversation],
    max_length: usize,
) -> Result<Prepared, LmError> {
    let template = model.template.as_ref().ok_or_else(|| {
        LmError::Template("the model has none, so it cannot be trained on conversations".into())
    })?;
    let tokenizer = &model.tokenizer;
    let examples = conversations
        .par_iter()
        .map(|conversation| label(tokenizer, template, conversation))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(limit(examples, max_length))
}

/// Cuts examples to `max_length` tokens and drops those without a trained token left.
fn limit(examples: Vec<Example>, max_length: usize) -> Prepared {
    let mut prepared = Prepared {
        examples: Vec::with_capacity(examples.len()),
        truncated: 0,
        rejected: Vec::new(),
    };
    for mut example in examples {
        let too_long = example.ids.len() > max_length;
        example.ids.truncate(max_length);
        example.labels.truncate(max_length);
        match example.trained() {
            0 => prepared.rejected.push(example.id),
            _ => {
                prepared.truncated += usize::from(too_long);
                prepared.examples.push(example);
            }
        }
    }
    prepared
}

fn label(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    conversation: &Conversation,
) -> Result<Example, LmError> {
    let (text, responses) = render(template, conversation)?;
    let tokens = tokenizer.encode_with_offsets(&text)?;
    let mut labels = vec![IGNORED; tokens.len()];
    for response in responses {
        // A token that reaches over an edge of the response belongs to the template.
        let inside: Vec<usize> = tokens
            .iter()
            .enumerate()
            .filter(|(_, (_, span))| response.start <= span.start && span.end <= response.end)
            .map(|(index, _)| index)
            .collect();
        let is_stop = |&&index: &&usize| tokenizer.stop_ids().contains(&tokens[index].0);
        let last = inside.iter().rfind(is_stop).ok_or_else(|| {
            let id = &conversation.id;
            LmError::Template(format!(
                "it ends the assistant's turn of row `{id}` with no stop token, so a model trained on it would not stop"
            ))
        })?;
        for &index in inside.iter().take_while(|&index| index <= last) {
            labels[index] = tokens[index].0;
        }
    }
    Ok(Example {
        id: conversation.id.clone(),
        ids: tokens.into_iter().map(|(id, _)| id).collect(),
        labels,
    })
}

/// The rendered conversation and where the assistant's turns lie in it, in bytes.
fn render(
    template: &ChatTemplate,
    conversation: &Conversation,
) -> Result<(String, Vec<Range<usize>>), LmError> {
    let messages = &conversation.messages;
    let text = template.render(messages, false)?;
    let length_of = |prefix: String| match text.starts_with(&prefix) {
        true => Ok(prefix.len()),
        false => Err(LmError::Template(format!(
            "it rewrites earlier turns of row `{}`, so the responses cannot be told apart",
            conversation.id
        ))),
    };
    let mut responses = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if message.role == "assistant" {
            let start = length_of(template.render(&messages[..index], true)?)?;
            let end = match index + 1 == messages.len() {
                true => text.len(),
                false => length_of(template.render(&messages[..=index], false)?)?,
            };
            responses.push(start..end);
        }
    }
    Ok((text, responses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cuts_long_examples_and_rejects_those_without_a_response() {
        let example = |id: &str, labels: &[i64]| Example {
            id: id.to_owned(),
            ids: vec![7; labels.len()],
            labels: labels.to_vec(),
        };
        let prepared = limit(
            vec![
                example("whole", &[IGNORED, 7]),
                example("cut", &[IGNORED, 7, 7, 7]),
                example("prompt only", &[IGNORED, IGNORED, IGNORED, 7]),
                example("first token only", &[7, IGNORED]),
            ],
            3,
        );
        assert_eq!(prepared.truncated, 1);
        assert_eq!(prepared.rejected, ["prompt only", "first token only"]);
        assert_eq!(prepared.examples[1].labels, [IGNORED, 7, 7]);
        assert_eq!(prepared.examples.len(), 2);
    }
}
