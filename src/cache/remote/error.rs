//! What can go wrong with a shared cache. None of it is an error of a run: results can always be made here.

use crate::cache::CacheError;

#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// Nothing more is asked of the remote in this process.
    #[error("the shared cache `{address}` cannot be used: {message}")]
    Unusable { address: String, message: String },
    #[error("`{object}` is not in the shared cache")]
    Missing { object: String },
    #[error("`{object}` in the shared cache is damaged: {message}")]
    Damaged { object: String, message: String },
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl RemoteError {
    pub(super) fn damaged(object: &object_store::path::Path, message: impl ToString) -> Self {
        Self::Damaged {
            object: object.to_string(),
            message: message.to_string(),
        }
    }
}

impl From<std::io::Error> for RemoteError {
    fn from(error: std::io::Error) -> Self {
        Self::Cache(error.into())
    }
}

/// A message of a client without the queries of addresses: some providers put signatures there.
pub(super) fn plain(message: &str) -> String {
    let mut text = String::new();
    let mut hidden = false;
    for letter in message.chars() {
        match letter {
            '?' => hidden = true,
            letter if letter.is_whitespace() || "\"')`".contains(letter) => hidden = false,
            _ => {}
        }
        if !hidden {
            text.push(if letter == '\n' { ' ' } else { letter });
        }
    }
    // The first few causes say it; the rest repeats them.
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn signatures_are_not_shown() {
        let said = super::plain(
            "error sending request for url (http://x/y?sig=planted): refused\nwhy? no idea",
        );
        assert_eq!(
            said,
            "error sending request for url (http://x/y): refused why no idea"
        );
    }
}
