//! The `cache:` section: where results are kept, and where they are shared with other machines.

use std::path::PathBuf;

use super::diagnostic::{Diagnostic, Problems};
use super::fields::Fields;
use super::yaml::Entry;
use super::{has_credentials, suggest};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CacheSpec {
    /// Relative to the project folder.
    pub path: Option<PathBuf>,
    /// An address as [`check_remote`] accepts it.
    pub remote: Option<String>,
}

/// Where results can be shared, and what an address there looks like.
const SCHEMES: [(&str, &str); 4] = [
    ("s3", "s3://bucket/prefix"),
    ("gs", "gs://bucket/prefix"),
    ("az", "az://container/prefix"),
    ("file", "file:///folder"),
];

impl CacheSpec {
    pub fn read(entry: &Entry, problems: &mut Problems) -> Option<Self> {
        let mut fields = Fields::of(&entry.value, "`cache`", entry.key_span, problems)?;
        let path = fields.text("path", problems).map(PathBuf::from);
        let remote = fields.text("remote", problems);
        fields.finish(problems);
        if let Some(Err(WrongRemote { message, help })) = remote.as_deref().map(check_remote) {
            let span = entry
                .value
                .entry("remote")
                .map_or(entry.key_span, |entry| entry.value.span);
            problems.push(Diagnostic::new(span, message).help(help));
        }
        Some(Self { path, remote })
    }
}

/// What is wrong with an address, and what to do; never the address itself, which may hold a password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongRemote {
    pub message: String,
    pub help: String,
}

/// Checks the form of an address of a shared cache; whether anything is there is another matter.
pub fn check_remote(address: &str) -> Result<(), WrongRemote> {
    let wrong = |message: String, help: &str| {
        Err(WrongRemote {
            message,
            help: help.to_owned(),
        })
    };
    const KEYS: &str = "it would end up in the records of runs: leave it out, and set the variables of the provider (`AWS_…`, `GOOGLE_…`, `AZURE_…`)";
    if has_credentials(address) {
        return wrong(
            "the `remote` of the cache holds a user or a password".to_owned(),
            KEYS,
        );
    }
    if address.contains(['?', '#']) {
        return wrong(
            "the `remote` of the cache holds more than a place".to_owned(),
            KEYS,
        );
    }
    let forms = || suggest::list(SCHEMES.map(|(_, form)| form));
    let Some((scheme, place)) = address.split_once("://") else {
        return wrong(
            format!("`{address}` is no address of a shared cache"),
            &format!("write it like {}", forms()),
        );
    };
    let Some((_, form)) = SCHEMES.iter().find(|(known, _)| *known == scheme) else {
        let guess = suggest::closest(scheme, SCHEMES.map(|(known, _)| known));
        let guess = guess.map_or(String::new(), |guess| format!("did you mean `{guess}`? "));
        return wrong(
            format!("a cache cannot be shared by `{scheme}://`"),
            &format!("{guess}The forms are {}", forms()),
        );
    };
    let bucket = place.split('/').next().unwrap_or_default();
    if bucket.is_empty() == (scheme == "file") && !place.contains("//") {
        return Ok(());
    }
    wrong(
        format!("`{address}` is no address of a shared cache"),
        &format!("write it like `{form}`"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for good in [
            "s3://bucket",
            "s3://bucket/a/b/",
            "gs://b/x",
            "az://container/x",
            "file:///tmp/x",
        ] {
            assert_eq!(check_remote(good), Ok(()), "{good}");
        }
        let said = |address: &str| {
            let wrong = check_remote(address).unwrap_err();
            format!("{}; {}", wrong.message, wrong.help)
        };
        insta::assert_snapshot!(said("/mnt/shared"), @"`/mnt/shared` is no address of a shared cache; write it like `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, `file:///folder`");
        insta::assert_snapshot!(said("s4://bucket/x"), @"a cache cannot be shared by `s4://`; did you mean `s3`? The forms are `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, `file:///folder`");
        insta::assert_snapshot!(said("s3:///x"), @"`s3:///x` is no address of a shared cache; write it like `s3://bucket/prefix`");
        insta::assert_snapshot!(said("file://host/x"), @"`file://host/x` is no address of a shared cache; write it like `file:///folder`");
        let planted = ["s3://key:planted@bucket/x", "az://box/x?sig=planted"];
        for address in planted {
            assert!(!said(address).contains("planted"), "{}", said(address));
        }
    }
}
