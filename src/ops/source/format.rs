//! What kind of data is at a path.

use std::path::Path;

use serde::Deserialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// MedQuAD's XML files, in a zip archive or a folder.
    Medquad,
    Csv,
    /// One JSON object per line, or one array of objects.
    Jsonl,
    Parquet,
    /// A folder of a Hugging Face dataset: Parquet, JSONL or CSV files by split.
    Hf,
    /// No table: the file or folder itself.
    Files,
}

impl Format {
    pub const NAMES: [&'static str; 6] = ["medquad", "csv", "jsonl", "parquet", "hf", "files"];

    /// The format of a file by its name, or of a folder by the names in it.
    pub fn detect(path: &Path) -> Option<Self> {
        if !path.is_dir() {
            return Self::of_name(&path.file_name()?.to_string_lossy());
        }
        let inside = |folder: &Path| -> Vec<_> {
            std::fs::read_dir(folder)
                .into_iter()
                .flatten()
                .flatten()
                .map(|entry| entry.path())
                .collect()
        };
        let direct = inside(path);
        let below = direct
            .iter()
            .filter(|path| path.is_dir())
            .flat_map(|folder| inside(folder));
        let formats: Vec<Self> = direct
            .iter()
            .cloned()
            .chain(below)
            .filter(|path| path.is_file())
            .filter_map(|path| Self::detect(&path))
            .collect();
        let tables = [Self::Parquet, Self::Csv, Self::Jsonl];
        if formats.contains(&Self::Medquad) {
            Some(Self::Medquad)
        } else {
            formats
                .iter()
                .any(|format| tables.contains(format))
                .then_some(Self::Hf)
        }
    }

    /// Also compressed: `rows.jsonl.gz`.
    pub fn of_name(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let bare = [".gz", ".zst"]
            .iter()
            .find_map(|suffix| name.strip_suffix(suffix))
            .unwrap_or(&name);
        match bare.rsplit_once('.')?.1 {
            "zip" | "xml" => Some(Self::Medquad),
            "csv" | "tsv" => Some(Self::Csv),
            "jsonl" | "ndjson" | "json" => Some(Self::Jsonl),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_folders_tell_the_format() {
        assert_eq!(Format::of_name("a.b.JSONL.gz"), Some(Format::Jsonl));
        assert_eq!(Format::of_name("a.tsv"), Some(Format::Csv));
        assert_eq!(Format::of_name("readme"), None);
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Format::detect(folder.path()), None);
        std::fs::create_dir(folder.path().join("data")).unwrap();
        std::fs::write(folder.path().join("data/train-0.parquet"), "").unwrap();
        assert_eq!(Format::detect(folder.path()), Some(Format::Hf));
        std::fs::write(folder.path().join("1.xml"), "").unwrap();
        assert_eq!(Format::detect(folder.path()), Some(Format::Medquad));
    }
}
