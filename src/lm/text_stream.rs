//! Text from tokens as they come: no half characters, nothing of a stop string.

use super::{LmError, Tokenizer};

/// The text of one completion so far.
pub struct TextStream {
    ids: Vec<i64>,
    /// Tokens before this one are not needed any more to decode what follows.
    from: usize,
    /// Tokens before this one have been given out as text.
    read: usize,
    stops: StopStrings,
}

impl TextStream {
    /// Ends at the first of `stops`.
    pub fn new(stops: Vec<String>) -> Self {
        Self {
            ids: Vec::new(),
            from: 0,
            read: 0,
            stops: StopStrings::new(stops),
        }
    }

    /// Takes a token; returns the text that is certain now, which may be empty.
    ///
    /// # Errors
    /// [`LmError::Tokenizer`] for a token that is not in the vocabulary.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: i64) -> Result<String, LmError> {
        self.ids.push(id);
        let text = self.decoded(tokenizer)?;
        // A character may be spread over several tokens.
        if text.is_empty() || text.ends_with('\u{fffd}') {
            return Ok(String::new());
        }
        self.from = self.read;
        self.read = self.ids.len();
        Ok(self.stops.push(&text))
    }

    /// The rest of the text, when no token follows.
    ///
    /// # Errors
    /// As [`TextStream::push`].
    pub fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String, LmError> {
        let text = self.decoded(tokenizer)?;
        self.read = self.ids.len();
        let mut rest = self.stops.push(&text);
        rest.push_str(&self.stops.finish());
        Ok(rest)
    }

    /// Whether a stop string was reached: nothing that follows counts.
    pub fn stopped(&self) -> bool {
        self.stops.reached
    }

    /// What the tokens since `read` add.
    fn decoded(&self, tokenizer: &Tokenizer) -> Result<String, LmError> {
        let known = tokenizer.decode(&self.ids[self.from..self.read])?;
        let all = tokenizer.decode(&self.ids[self.from..])?;
        Ok(all.get(known.len()..).unwrap_or_default().to_owned())
    }
}

/// Passes text on up to the first stop string, holding back what may be the beginning of one.
struct StopStrings {
    stops: Vec<String>,
    held: String,
    reached: bool,
}

impl StopStrings {
    fn new(mut stops: Vec<String>) -> Self {
        stops.retain(|stop| !stop.is_empty());
        Self {
            stops,
            held: String::new(),
            reached: false,
        }
    }

    fn push(&mut self, text: &str) -> String {
        if self.reached {
            return String::new();
        }
        self.held.push_str(text);
        // The one complete first, however the text is cut into pieces.
        let found = self
            .stops
            .iter()
            .filter_map(|stop| {
                self.held
                    .find(stop.as_str())
                    .map(|at| (at + stop.len(), at))
            })
            .min();
        if let Some((_, at)) = found {
            self.reached = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let certain = self.held.len() - self.pending();
        let rest = self.held.split_off(certain);
        std::mem::replace(&mut self.held, rest)
    }

    /// Bytes at the end that a stop string could begin with.
    fn pending(&self) -> usize {
        let ends = self.held.char_indices().map(|(at, _)| &self.held[at..]);
        let pending = ends.filter(|end| self.stops.iter().any(|stop| stop.starts_with(end)));
        pending.map(str::len).max().unwrap_or(0)
    }

    fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(stops: &[&str], text: &[&str]) -> (Vec<String>, bool) {
        let mut stream = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut pieces: Vec<String> = text.iter().map(|text| stream.push(text)).collect();
        pieces.push(stream.finish());
        (pieces, stream.reached)
    }

    #[test]
    fn text_ends_before_the_first_stop_string() {
        assert_eq!(
            pieces(&[], &["a", "b"]),
            (vec!["a".into(), "b".into(), String::new()], false)
        );
        assert_eq!(
            pieces(&["\n\nQ"], &["one\n", "\nQ", "two"]),
            (
                vec!["one".into(), String::new(), String::new(), String::new()],
                true
            )
        );
        // What could have been a stop string and was not is given out.
        assert_eq!(
            pieces(&["\n\nQ"], &["one\n", "two"]),
            (vec!["one".into(), "\ntwo".into(), String::new()], false)
        );
        assert_eq!(
            pieces(&["é!"], &["é", "?"]),
            (vec![String::new(), "é?".into(), String::new()], false)
        );
        assert_eq!(
            pieces(&["bc", "abcd"], &["xabcd"]),
            (vec!["xa".into(), String::new()], true)
        );
        assert_eq!(
            pieces(&["zz"], &["z"]),
            (vec![String::new(), "z".into()], false)
        );
    }
}
