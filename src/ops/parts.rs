//! Work of one op call that other processes do in parts: items go out, answers come back, a line each.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Context, OpError};

/// Hands items of one op call to other processes.
pub trait Parts: Send + Sync {
    /// Has every item answered. `take` gets each answer (JSON) as it comes, those of an earlier, unfinished try first, and
    /// makes it durable. What was asked in such a try is waited for: the items given now may then be left over, so the
    /// caller looks what is still missing and asks again.
    fn answer(
        &self,
        context: &Context<'_>,
        items: &[Item],
        take: &mut dyn FnMut(&[String]) -> Result<(), OpError>,
    ) -> Result<(), OpError>;
}

/// One unit of work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// JSON, for the op.
    pub text: String,
    /// How much work it is beside others.
    pub weight: u64,
    /// Neighbours of one group stay in one part, as their answers may depend on what they are computed with.
    pub group: usize,
}

/// The part of the work that this process is to do.
#[derive(Debug)]
pub struct Part {
    /// The items, a line each.
    pub items: PathBuf,
    /// Answers of earlier tries at this part.
    pub earlier: Vec<PathBuf>,
    /// Where answers are added.
    pub answers: PathBuf,
}

impl Part {
    pub fn items<T: DeserializeOwned>(&self) -> Result<Vec<T>, OpError> {
        let mut items = Vec::new();
        for line in BufReader::new(fs_err::File::open(&self.items)?).lines() {
            let item = serde_json::from_str(&line?).map_err(|error| {
                OpError::new(format!("`{}` is damaged: {error}", self.items.display()))
            })?;
            items.push(item);
        }
        Ok(items)
    }

    /// What earlier tries have answered; the last line of one that was killed may be cut off and does not count.
    pub fn earlier<T: DeserializeOwned>(&self) -> Result<Vec<T>, OpError> {
        let mut answers = Vec::new();
        for path in &self.earlier {
            let text = match fs_err::read(path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                text => text?,
            };
            let lines = text.split_inclusive(|&byte| byte == b'\n');
            answers.extend(lines.filter_map(|line| serde_json::from_slice(line).ok()));
        }
        Ok(answers)
    }

    /// Adds answers; when this returns they survive this process and its machine.
    pub fn answer(&self, answers: &[impl Serialize]) -> Result<(), OpError> {
        let mut bytes = Vec::new();
        for answer in answers {
            serde_json::to_writer(&mut bytes, answer).map_err(std::io::Error::from)?;
            bytes.push(b'\n');
        }
        let mut file = File::options()
            .append(true)
            .create(true)
            .open(&self.answers)?;
        file.write_all(&bytes)?;
        Ok(file.sync_data()?)
    }
}

/// Cuts items into `count` runs of about equal weight, in their order; fewer where there are not so many groups.
pub fn split(items: &[Item], count: usize) -> Vec<&[Item]> {
    let groups: Vec<&[Item]> = items
        .chunk_by(|one, next| one.group == next.group)
        .collect();
    let weigh = |items: &[Item]| items.iter().map(|item| item.weight).sum::<u64>();
    let count = count.clamp(1, groups.len().max(1));
    let (mut parts, mut rest, mut left) = (Vec::with_capacity(count), items, weigh(items));
    let mut groups = groups.into_iter();
    for part in 0..count {
        let after = count - part - 1;
        let goal = left / (after as u64 + 1);
        let (mut end, mut weight) = (0, 0);
        // At least one group each, and one left for each of those after.
        while groups.len() > after && (end == 0 || after == 0 || weight < goal) {
            let group = groups.next().unwrap_or_default();
            weight += weigh(group);
            end += group.len();
        }
        let (this, others) = rest.split_at(end);
        parts.push(this);
        (rest, left) = (others, left - weight);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(weights: &[u64]) -> Vec<Item> {
        let item = |(group, &weight): (usize, &u64)| Item {
            text: weight.to_string(),
            weight,
            group,
        };
        weights.iter().enumerate().map(item).collect()
    }

    #[test]
    fn parts_weigh_about_the_same_and_lose_nothing() {
        let sizes = |weights: &[u64], count| -> Vec<usize> {
            let items = items(weights);
            let parts = split(&items, count);
            assert_eq!(parts.concat(), items);
            parts.iter().map(|part| part.len()).collect()
        };
        assert_eq!(sizes(&[1, 1, 1, 1], 2), [2, 2]);
        assert_eq!(sizes(&[9, 1, 1, 1], 2), [1, 3]);
        assert_eq!(sizes(&[1, 1, 9], 3), [1, 1, 1]);
        assert_eq!(sizes(&[9, 1, 1], 3), [1, 1, 1]);
        assert_eq!(sizes(&[0, 0, 0], 2), [1, 2]);
        assert_eq!(sizes(&[5, 5], 8), [1, 1]);
        assert_eq!(sizes(&[], 3), [0]);
    }

    #[test]
    fn groups_stay_together() {
        let mut items = items(&[1; 21]);
        for (index, item) in items.iter_mut().enumerate() {
            item.group = index / 8;
        }
        let sizes = |count| -> Vec<usize> {
            let parts = split(&items, count);
            assert_eq!(parts.concat(), items);
            parts.iter().map(|part| part.len()).collect()
        };
        assert_eq!(sizes(2), [16, 5]);
        assert_eq!(sizes(9), [8, 8, 5]);
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers");
        std::fs::write(&path, "[1,2]\n[3,4]\n[5,").unwrap();
        let part = Part {
            items: PathBuf::new(),
            earlier: vec![path, folder.path().join("none")],
            answers: folder.path().join("mine"),
        };
        assert_eq!(part.earlier::<(i64, i64)>().unwrap(), [(1, 2), (3, 4)]);
        part.answer(&[(7, 8)]).unwrap();
        part.answer(&[(9, 10)]).unwrap();
        assert_eq!(
            std::fs::read_to_string(&part.answers).unwrap(),
            "[7,8]\n[9,10]\n"
        );
    }
}
