//! Where a run is tracked, from the environment (as W&B's users set it) and the pipeline's `tracking:`.

use std::fmt;

use reqwest::Url;

use super::netrc;
use crate::config::TrackingSpec;

/// Where those go who have an account with W&B and say nothing else.
const CLOUD: &str = "https://api.wandb.ai";

/// A key that is never shown, not even by `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    pub fn new(key: impl Into<String>) -> Self {
        Self(key.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Journal and send.
    Online,
    /// Journal only; `flow sync` or `flow export` come later.
    Offline,
}

/// The server and the project a run belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub mode: Mode,
    pub base_url: Url,
    pub key: Option<ApiKey>,
    /// `None`: the default of the key's owner.
    pub entity: Option<String>,
    pub project: String,
    /// What the run is called; by default its id.
    pub name: Option<String>,
    /// Runs that belong together; by default the variants of a matrix do.
    pub group: Option<String>,
    /// What the run is among those of its group.
    pub job_type: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    #[error("`{value}` is no mode of tracking (`{from}`)")]
    Mode { value: String, from: &'static str },
    #[error("`{value}` is no address of a tracking server (`{from}`)")]
    Url { value: String, from: &'static str },
    #[error("`{value}` cannot be the name of a project")]
    Project { value: String },
}

impl SettingsError {
    pub fn help(&self) -> &'static str {
        match self {
            Self::Mode { .. } => "the modes are `online`, `offline` and `disabled`",
            Self::Url { .. } => "it begins with http:// or https://",
            Self::Project { .. } => "at most 128 characters, none of / \\ # ? % :",
        }
    }
}

/// What the settings are made from. Variables win over the pipeline, as they belong to who runs it.
pub struct Sources<'a> {
    pub spec: Option<&'a TrackingSpec>,
    /// The pipeline's name, for the project where none is given.
    pub pipeline: &'a str,
    pub variable: &'a dyn Fn(&str) -> Option<String>,
    /// The text of `~/.netrc`.
    pub netrc: &'a dyn Fn() -> Option<String>,
}

impl Sources<'_> {
    /// `None` where tracking is off: nobody asked, or the mode is `disabled`.
    pub fn resolve(&self) -> Result<Option<Settings>, SettingsError> {
        let (address, key) = (
            self.variable("WANDB_BASE_URL"),
            self.variable("WANDB_API_KEY"),
        );
        let (mode, mode_from) = either(
            self.variable("WANDB_MODE"),
            "WANDB_MODE",
            self.spec.and_then(|spec| spec.mode.clone()),
            "tracking.mode",
        );
        let mode = match mode.as_deref() {
            Some("disabled") => return Ok(None),
            Some("offline" | "dryrun") => Mode::Offline,
            Some("online" | "run") => Mode::Online,
            Some(other) => {
                let value = other.to_owned();
                return Err(SettingsError::Mode {
                    value,
                    from: mode_from,
                });
            }
            None if self.spec.is_none() && address.is_none() && key.is_none() => return Ok(None),
            None => Mode::Online,
        };
        let (address, from) = either(
            address,
            "WANDB_BASE_URL",
            self.spec.and_then(|spec| spec.base_url.clone()),
            "tracking.base_url",
        );
        let base_url = base_url(address.as_deref().unwrap_or(CLOUD), from)?;
        let key = key.map(ApiKey::new).or_else(|| self.stored_key(&base_url));
        let project = self
            .variable("WANDB_PROJECT")
            .or_else(|| self.spec.and_then(|spec| spec.project.clone()))
            .unwrap_or_else(|| self.pipeline.replace(FORBIDDEN, "-"));
        if project.is_empty() || project.chars().count() > 128 || project.contains(FORBIDDEN) {
            return Err(SettingsError::Project { value: project });
        }
        Ok(Some(Settings {
            mode,
            base_url,
            key,
            entity: self
                .variable("WANDB_ENTITY")
                .or_else(|| self.spec.and_then(|spec| spec.entity.clone())),
            project,
            name: self.variable("WANDB_NAME"),
            group: self.variable("WANDB_RUN_GROUP"),
            job_type: self.variable("WANDB_JOB_TYPE"),
        }))
    }

    /// The key of a server, for commands that know the server from a journal.
    pub fn key(&self, base_url: &Url) -> Option<ApiKey> {
        self.variable("WANDB_API_KEY")
            .map(ApiKey::new)
            .or_else(|| self.stored_key(base_url))
    }

    fn stored_key(&self, base_url: &Url) -> Option<ApiKey> {
        let text = (self.netrc)()?;
        netrc::password(&text, base_url.host_str()?).map(ApiKey::new)
    }

    /// A variable that is set to nothing is not set.
    fn variable(&self, name: &str) -> Option<String> {
        (self.variable)(name).filter(|value| !value.trim().is_empty())
    }
}

const FORBIDDEN: [char; 6] = ['/', '\\', '#', '?', '%', ':'];

fn either(
    first: Option<String>,
    first_from: &'static str,
    second: Option<String>,
    second_from: &'static str,
) -> (Option<String>, &'static str) {
    match first {
        Some(_) => (first, first_from),
        None => (second, second_from),
    }
}

/// An address as it is compared and kept: without a slash at the end.
pub fn base_url(text: &str, from: &'static str) -> Result<Url, SettingsError> {
    let wrong = || SettingsError::Url {
        value: text.to_owned(),
        from,
    };
    let mut url = Url::parse(text.trim()).map_err(|_| wrong())?;
    if !["http", "https"].contains(&url.scheme()) || url.host_str().is_none() {
        return Err(wrong());
    }
    let path = url.path().trim_end_matches('/').to_owned();
    url.set_path(&path);
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(
        variables: &[(&str, &str)],
        spec: Option<&TrackingSpec>,
        netrc: &str,
    ) -> Result<Option<Settings>, SettingsError> {
        let variable = |name: &str| {
            let found = variables.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let sources = Sources {
            spec,
            pipeline: "med/quad",
            variable: &variable,
            netrc: &|| Some(netrc.to_owned()),
        };
        sources.resolve()
    }

    fn spec(mode: Option<&str>) -> TrackingSpec {
        TrackingSpec {
            entity: Some("team".into()),
            project: Some("qa".into()),
            base_url: Some("http://127.0.0.1:9/".into()),
            mode: mode.map(str::to_owned),
        }
    }

    #[test]
    fn off_until_somebody_asks() {
        assert_eq!(resolve(&[], None, "default password k").unwrap(), None);
        assert_eq!(resolve(&[("WANDB_PROJECT", "p")], None, "").unwrap(), None);
        assert_eq!(resolve(&[("WANDB_API_KEY", " ")], None, "").unwrap(), None);
        let disabled = [("WANDB_API_KEY", "k"), ("WANDB_MODE", "disabled")];
        assert_eq!(resolve(&disabled, Some(&spec(None)), "").unwrap(), None);
        assert_eq!(
            resolve(&[], Some(&spec(Some("disabled"))), "").unwrap(),
            None
        );
    }

    #[test]
    fn the_environment_wins() {
        let settings = resolve(&[("WANDB_API_KEY", "k")], None, "")
            .unwrap()
            .unwrap();
        assert_eq!(settings.base_url.as_str(), "https://api.wandb.ai/");
        assert_eq!(settings.project, "med-quad");
        assert_eq!(settings.key, Some(ApiKey::new("k")));

        let settings = resolve(
            &[],
            Some(&spec(Some("offline"))),
            "machine 127.0.0.1 password local",
        )
        .unwrap()
        .unwrap();
        assert_eq!(
            (settings.mode, settings.project.as_str()),
            (Mode::Offline, "qa")
        );
        assert_eq!(settings.key, Some(ApiKey::new("local")));

        let variables = [
            ("WANDB_BASE_URL", "http://localhost:8080/api/"),
            ("WANDB_PROJECT", "other"),
            ("WANDB_ENTITY", "me"),
            ("WANDB_NAME", "first try"),
            ("WANDB_RUN_GROUP", "ranks"),
            ("WANDB_JOB_TYPE", "train"),
            ("WANDB_MODE", "online"),
        ];
        let settings = resolve(&variables, Some(&spec(Some("offline"))), "")
            .unwrap()
            .unwrap();
        assert_eq!(settings.mode, Mode::Online);
        assert_eq!(settings.base_url.as_str(), "http://localhost:8080/api");
        assert_eq!(settings.entity.as_deref(), Some("me"));
        assert_eq!(settings.project, "other");
        assert_eq!(settings.name.as_deref(), Some("first try"));
        assert_eq!(settings.group.as_deref(), Some("ranks"));
        assert_eq!(settings.job_type.as_deref(), Some("train"));
        assert_eq!(settings.key, None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |variables: &[(&str, &str)]| {
            resolve(variables, Some(&spec(None)), "")
                .unwrap_err()
                .to_string()
        };
        insta::assert_snapshot!(error(&[("WANDB_MODE", "onlin")]), @"`onlin` is no mode of tracking (`WANDB_MODE`)");
        insta::assert_snapshot!(error(&[("WANDB_BASE_URL", "localhost:80")]), @"`localhost:80` is no address of a tracking server (`WANDB_BASE_URL`)");
        insta::assert_snapshot!(error(&[("WANDB_PROJECT", "a/b")]), @"`a/b` cannot be the name of a project");
    }

    #[test]
    fn keys_are_not_shown() {
        let settings = resolve(&[("WANDB_API_KEY", "very-secret")], None, "").unwrap();
        assert!(!format!("{settings:?}").contains("very-secret"));
    }
}
