//! `~/.netrc`: where W&B's own client keeps API keys, as the password of the host.
//!
//! The format is that of ftp(1): words apart by blanks; `machine NAME` or `default`, then `login`, `password`, `account` with a
//! word each; `macdef` up to an empty line.

/// The password for `host`, else that of `default`.
pub fn password(text: &str, host: &str) -> Option<String> {
    let mut found = None;
    // Whether the words now belong to the host itself (`Some(true)`), to `default` (`Some(false)`) or to another.
    let mut entry = None;
    let mut words = words(text).into_iter();
    while let Some(word) = words.next() {
        match word.as_str() {
            "machine" => entry = (words.next()? == host).then_some(true),
            "default" => entry = Some(false),
            "password" => {
                let password = words.next()?;
                match entry {
                    Some(true) => return Some(password),
                    Some(false) => found = found.or(Some(password)),
                    None => {}
                }
            }
            "login" | "account" => {
                words.next()?;
            }
            _ => {}
        }
    }
    found
}

/// All words but those of comments and macros.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut in_macro = false;
    for line in text.lines() {
        if line.trim().is_empty() {
            in_macro = false;
        }
        if in_macro {
            continue;
        }
        for word in line.split_whitespace() {
            // A password may begin so too.
            if word.starts_with('#') && words.last().is_none_or(|last| last != "password") {
                break;
            }
            if word == "macdef" {
                in_macro = true;
                break;
            }
            words.push(word.to_owned());
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
# keys
machine api.wandb.ai
  login user
  password k1
macdef init
machine example.org password of-a-macro

machine 127.0.0.1 login user password k2 # local
default login anonymous password k3
";

    #[test]
    fn passwords_by_host() {
        assert_eq!(password(TEXT, "api.wandb.ai").as_deref(), Some("k1"));
        assert_eq!(password(TEXT, "127.0.0.1").as_deref(), Some("k2"));
        assert_eq!(password(TEXT, "example.org").as_deref(), Some("k3"));
        assert_eq!(
            password("machine a login password password k", "a").as_deref(),
            Some("k")
        );
        assert_eq!(
            password("machine a password #k", "a").as_deref(),
            Some("#k")
        );
        assert_eq!(password("machine a login b", "a"), None);
        assert_eq!(password("", "a"), None);
    }
}
