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
    #[error("{group} is a matrix of {} runs", .ids.len())]
    Group { group: String, ids: Vec<String> },
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl FindError {
    /// The next step, where there is one to name.
    pub fn help(&self) -> Option<String> {
        match self {
            Self::None(_) => Some("`flow run PIPELINE` makes the first".to_owned()),
            Self::Unknown(_) | Self::TooFew { .. } => Some("`flow runs` lists them".to_owned()),
            Self::Ambiguous { .. } => Some("give more of it".to_owned()),
            Self::Group { group, ids } => Some(format!(
                "name one, such as {}; `flow compare {group}` shows them all",
                ids.last().map_or("", String::as_str)
            )),
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
        (_, None) => Err(match common_group(runs, &fitting) {
            Some(group) => FindError::Group {
                group,
                ids: fitting,
            },
            None => FindError::Ambiguous {
                name: name.to_owned(),
                ids: fitting,
            },
        }),
    }
}

/// The matrix that all of these runs are of.
fn common_group(runs: &Path, ids: &[String]) -> Option<String> {
    let group = |id: &String| Some(Head::read(&runs.join(id)).ok()?.variant?.group);
    let first = group(ids.first()?)?;
    ids.iter()
        .all(|id| group(id).as_ref() == Some(&first))
        .then_some(first)
}

/// The folders of all runs of the matrix that `name` means, in the order of its variants; `None` where it means a run by itself.
pub fn find_group(runs: &Path, name: &str) -> Result<Option<Vec<PathBuf>>, FindError> {
    let group = match find(runs, name) {
        Err(FindError::Group { group, .. }) => group,
        // Of a matrix, `latest` is the whole.
        Ok(folder) if name.starts_with("latest") => match Head::read(&folder)?.variant {
            Some(variant) => variant.group,
            None => return Ok(None),
        },
        Ok(folder) => match folder.file_name().and_then(|id| id.to_str()) {
            // The one variant of a matrix, named by the whole.
            Some(id) if id != name => match Head::read(&folder)?.variant {
                Some(variant) if name.len() <= variant.group.len() => variant.group,
                _ => return Ok(None),
            },
            _ => return Ok(None),
        },
        Err(error) => return Err(error),
    };
    let is_member = |id: &String| {
        id.strip_prefix(group.as_str())
            .is_some_and(|rest| rest.starts_with('-'))
    };
    let mut members: Vec<String> = ids(runs)?.into_iter().filter(is_member).collect();
    members.reverse();
    Ok(Some(members.into_iter().map(|id| runs.join(id)).collect()))
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
