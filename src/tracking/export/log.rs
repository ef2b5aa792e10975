//! The container of a `.wandb` file: a header, then records in the layout of LevelDB's log, with a plain CRC-32.

use std::io::{self, Write};

/// `:W&B`, a magic number, version 0.
const HEADER: [u8; 7] = [0x3a, 0x57, 0x26, 0x42, 0xe1, 0xbe, 0x00];
/// Records do not cross blocks; the header counts as a part of the first.
const BLOCK: usize = 32 * 1024;
/// Checksum (4), length (2), kind (1).
const CHUNK_HEADER: usize = 7;

const FULL: u8 = 1;
const FIRST: u8 = 2;
const MIDDLE: u8 = 3;
const LAST: u8 = 4;

pub struct LogWriter<W> {
    file: W,
    /// Bytes of the block that are written.
    used: usize,
}

impl<W: Write> LogWriter<W> {
    pub fn new(mut file: W) -> io::Result<Self> {
        file.write_all(&HEADER)?;
        Ok(Self {
            file,
            used: HEADER.len(),
        })
    }

    pub fn record(&mut self, record: &[u8]) -> io::Result<()> {
        let mut rest = record;
        let mut is_first = true;
        loop {
            if BLOCK - self.used < CHUNK_HEADER {
                self.file
                    .write_all(&[0; CHUNK_HEADER][..BLOCK - self.used])?;
                self.used = 0;
            }
            let (chunk, after) = rest.split_at(rest.len().min(BLOCK - self.used - CHUNK_HEADER));
            let kind = match (is_first, after.is_empty()) {
                (true, true) => FULL,
                (true, false) => FIRST,
                (false, false) => MIDDLE,
                (false, true) => LAST,
            };
            self.chunk(kind, chunk)?;
            if after.is_empty() {
                return Ok(());
            }
            (rest, is_first) = (after, false);
        }
    }

    pub fn finish(mut self) -> io::Result<W> {
        self.file.flush()?;
        Ok(self.file)
    }

    fn chunk(&mut self, kind: u8, data: &[u8]) -> io::Result<()> {
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&[kind]);
        checksum.update(data);
        // Shorter than a block, so the length fits.
        let length = data.len() as u16;
        self.file.write_all(&checksum.finalize().to_le_bytes())?;
        self.file.write_all(&length.to_le_bytes())?;
        self.file.write_all(&[kind])?;
        self.file.write_all(data)?;
        self.used = (self.used + CHUNK_HEADER + data.len()) % BLOCK;
        Ok(())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Reads records back; every checksum must fit.
    pub fn records(file: &[u8]) -> Vec<Vec<u8>> {
        assert_eq!(file[..HEADER.len()], HEADER);
        let (mut at, mut records, mut open) = (HEADER.len(), Vec::new(), None::<Vec<u8>>);
        while at < file.len() {
            if BLOCK - at % BLOCK < CHUNK_HEADER {
                let end = at + BLOCK - at % BLOCK;
                assert!(file[at..end].iter().all(|byte| *byte == 0));
                at = end;
                continue;
            }
            let length = usize::from(u16::from_le_bytes([file[at + 4], file[at + 5]]));
            let (kind, data) = (file[at + 6], &file[at + 7..at + 7 + length]);
            let checksum = crc32fast::hash(&[&[kind], data].concat());
            assert_eq!(checksum.to_le_bytes(), file[at..at + 4]);
            match kind {
                FULL => records.push(data.to_vec()),
                FIRST => assert_eq!(open.replace(data.to_vec()), None),
                MIDDLE => open.as_mut().unwrap().extend(data),
                LAST => {
                    let mut record = open.take().unwrap();
                    record.extend(data);
                    records.push(record);
                }
                other => panic!("{other} is no kind of chunk"),
            }
            at += CHUNK_HEADER + length;
        }
        assert_eq!(open, None);
        records
    }

    #[test]
    fn records_of_all_lengths_come_back() {
        let lengths = [0, 1, BLOCK, 3 * BLOCK + 5, 100];
        // So that a block ends with each number of bytes left that is too small for a header, and with one that just fits.
        let ends = (0..=8).map(|left| BLOCK - 2 * CHUNK_HEADER - left);
        let mut expected: Vec<Vec<u8>> = Vec::new();
        for (index, length) in lengths.into_iter().chain(ends).enumerate() {
            expected.push(vec![index as u8; length]);
        }
        let mut writer = LogWriter::new(Vec::new()).unwrap();
        for record in &expected {
            writer.record(record).unwrap();
        }
        assert_eq!(records(&writer.finish().unwrap()), expected);
        // Directly after the header.
        for left in 0..=8 {
            let record = vec![7; BLOCK - HEADER.len() - CHUNK_HEADER - left];
            let mut writer = LogWriter::new(Vec::new()).unwrap();
            writer.record(&record).unwrap();
            writer.record(b"next").unwrap();
            assert_eq!(
                records(&writer.finish().unwrap()),
                [record, b"next".to_vec()]
            );
        }
    }
}
