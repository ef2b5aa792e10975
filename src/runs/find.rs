//! Which run is meant: an id, the beginning of one, `latest`, `latest~1`.

use std::path::{Path, PathBuf};

use fs_err as fs;

use super::Head;

#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error("there are no runs in `{}`", .0.display())]
    None(PathBuf),
    #[error("there is no run `{0}`")]
    Unknown(String),
    #[error("there are only {count} runs, so there is no `{name}`")]
    TooFew { name: String, count: usize },
    #[error("`{name}` could be {}", .ids.join(", "))]
    Ambiguous { name: String, ids: Vec<String> },
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl FindError {
    /// The next step, where there is one to name.
    pub fn help(&self) -> Option<&'static str> {
        match self {
            Self::None(_) => Some("`flow run PIPELINE` makes the first"),
            Self::Unknown(_) | Self::TooFew { .. } => Some("`flow runs` lists them"),
            Self::Ambiguous { .. } => Some("give more of it"),
            Self::Io(_) => None,
        }
    }
}

/// Ids of all runs, the newest first.
fn ids(runs: &Path) -> std::io::Result<Vec<String>> {
    let folders = match fs::read_dir(runs) {
        Ok(folders) => folders,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut ids = Vec::new();
    for folder in folders {
        let folder = folder?;
        if folder.path().join("run.json").exists() {
            ids.extend(folder.file_name().into_string());
        }
    }
    ids.sort_unstable_by(|left, right| right.cmp(left));
    Ok(ids)
}

/// The folder of the run that `name` means.
pub fn find(runs: &Path, name: &str) -> Result<PathBuf, FindError> {
    let ids = ids(runs)?;
    if ids.is_empty() {
        return Err(FindError::None(runs.to_path_buf()));
    }
    if let Some(back) = name.strip_prefix("latest") {
        let back = if back.is_empty() {
            Some(0)
        } else {
            back.strip_prefix('~')
                .and_then(|back| back.parse::<usize>().ok())
        };
        let back = back.ok_or_else(|| FindError::Unknown(name.to_owned()))?;
        let id = ids.get(back).ok_or_else(|| FindError::TooFew {
            name: name.to_owned(),
            count: ids.len(),
        })?;
        return Ok(runs.join(id));
    }
    let mut fitting: Vec<String> = ids.into_iter().filter(|id| id.starts_with(name)).collect();
    match (fitting.len(), fitting.iter().position(|id| id == name)) {
        (_, Some(exact)) => Ok(runs.join(&fitting[exact])),
        (1, None) => Ok(runs.join(fitting.remove(0))),
        (0, None) => Err(FindError::Unknown(name.to_owned())),
        (_, None) => Err(FindError::Ambiguous {
            name: name.to_owned(),
            ids: fitting,
        }),
    }
}

/// The heads of all runs, the newest first. A record that cannot be read is left out.
pub fn list(runs: &Path) -> std::io::Result<Vec<Head>> {
    Ok(ids(runs)?
        .into_iter()
        .filter_map(|id| Head::read(&runs.join(id)).ok())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_find_runs() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(
            find(folder.path(), "latest"),
            Err(FindError::None(_))
        ));
        for id in [
            "20260101-000000-aaaa",
            "20260101-000000-aabb",
            "20260301-000000-cccc",
        ] {
            fs::create_dir(folder.path().join(id)).unwrap();
            fs::write(folder.path().join(id).join("run.json"), "{}").unwrap();
        }
        let name = |query: &str| {
            find(folder.path(), query)
                .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
        };
        assert_eq!(name("latest").unwrap(), "20260301-000000-cccc");
        assert_eq!(name("latest~2").unwrap(), "20260101-000000-aaaa");
        assert_eq!(name("202603").unwrap(), "20260301-000000-cccc");
        insta::assert_snapshot!(name("latest~3").unwrap_err(), @"there are only 3 runs, so there is no `latest~3`");
        insta::assert_snapshot!(name("20260101-000000-aa").unwrap_err(), @"`20260101-000000-aa` could be 20260101-000000-aabb, 20260101-000000-aaaa");
        insta::assert_snapshot!(name("x").unwrap_err(), @"there is no run `x`");
    }
}
