//! Files that only grow, line by line: what the run appends, and what the sender reads behind it.

use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use fs_err::{File, OpenOptions};

/// The end that is written to. A line is in the file whole, or not at all.
#[derive(Debug)]
pub struct LineFile {
    file: File,
    bytes: u64,
    lines: u64,
}

impl LineFile {
    /// Opens or makes it; half a line at the end, left by a process that was killed, is cut off.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)?;
        let (mut lines, mut whole, mut read) = (0, 0, 0);
        let mut reader = BufReader::new(&file);
        loop {
            let block = reader.fill_buf()?;
            if block.is_empty() {
                break;
            }
            for (place, _) in block.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
                lines += 1;
                whole = read + place as u64 + 1;
            }
            let length = block.len();
            read += length as u64;
            reader.consume(length);
        }
        file.set_len(whole)?;
        Ok(Self {
            file,
            bytes: whole,
            lines,
        })
    }

    /// How many lines there are.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Adds a line, which must not contain a line break. Once this returns, the line outlives the process.
    pub fn append(&mut self, line: &str) -> io::Result<()> {
        let line = format!("{line}\n");
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            // A part of a line would swallow the next one.
            self.file.set_len(self.bytes)?;
            return Err(error);
        }
        self.bytes += line.len() as u64;
        self.lines += 1;
        Ok(())
    }

    /// A second handle, to sync without keeping writers waiting.
    pub fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }
}

/// A place between two lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    pub line: u64,
    byte: u64,
}

/// The end that is read from, while the file grows.
#[derive(Debug)]
pub struct LineReader {
    file: BufReader<File>,
    position: Position,
}

impl LineReader {
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: BufReader::new(File::open(path)?),
            position: Position::default(),
        })
    }

    pub fn position(&self) -> Position {
        self.position
    }

    pub fn seek(&mut self, position: Position) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(position.byte))?;
        self.position = position;
        Ok(())
    }

    /// The next line, once it is whole.
    pub fn next(&mut self) -> io::Result<Option<String>> {
        let mut line = Vec::new();
        self.file.read_until(b'\n', &mut line)?;
        if line.pop() != Some(b'\n') {
            // The rest is still being written.
            self.file.seek(SeekFrom::Start(self.position.byte))?;
            return Ok(None);
        }
        self.position.line += 1;
        self.position.byte += line.len() as u64 + 1;
        String::from_utf8(line)
            .map(Some)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Makes sure that what was read is on the disk.
    pub fn sync(&self) -> io::Result<()> {
        self.file.get_ref().sync_data()
    }
}

/// The beginning of a text, at most so many bytes.
pub fn beginning(text: &str, most: usize) -> &str {
    let ends = text
        .char_indices()
        .map(|(at, character)| at + character.len_utf8());
    &text[..ends.take_while(|end| *end <= most).last().unwrap_or(0)]
}

/// The last whole line of a file.
pub fn last(path: &Path) -> io::Result<Option<String>> {
    let mut text = String::new();
    File::open(path)?.read_to_string(&mut text)?;
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    Ok(whole
        .lines()
        .last()
        .filter(|line| !line.is_empty())
        .map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(
            ["", "a", "aé"].map(|text| beginning(text, 2)),
            ["", "a", "a"]
        );
        assert_eq!(beginning("aéb", 3), "aé");
    }

    #[test]
    fn half_a_line_is_cut_off_and_never_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("history.jsonl");
        let mut file = LineFile::open(&path).unwrap();
        file.append("one").unwrap();
        file.append("").unwrap();
        let mut reader = LineReader::open(&path).unwrap();
        assert_eq!(reader.next().unwrap().as_deref(), Some("one"));
        let after_one = reader.position();
        assert_eq!(reader.next().unwrap().as_deref(), Some(""));
        assert_eq!(reader.next().unwrap(), None);
        file.file.write_all("zw".as_bytes()).unwrap();
        assert_eq!(reader.next().unwrap(), None);
        let mut file = LineFile::open(&path).unwrap();
        assert_eq!(file.lines(), 2);
        file.append("three").unwrap();
        assert_eq!(reader.next().unwrap().as_deref(), Some("three"));
        assert_eq!(reader.position().line, 3);
        reader.seek(after_one).unwrap();
        assert_eq!(reader.next().unwrap().as_deref(), Some(""));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\n\nthree\n");
        assert_eq!(last(&path).unwrap().as_deref(), Some("three"));
    }
}
