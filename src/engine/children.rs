//! Processes that an op started: known by a record in the node's scratch folder, so that those which outlive a killed
//! flow are ended before anything of theirs is used again. Until then they can write into that folder only, of which
//! nothing is kept.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fs_err as fs;
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// The name of the record in a scratch folder.
const RECORD: &str = "child.json";

/// A child process; its process group has the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Child {
    pid: i32,
    /// In clock ticks since the machine started: with the number it names a process for good.
    start: u64,
}

/// Notes that a process works in `scratch`. Written before the process starts (without a number) and again after.
pub fn record(scratch: &Path, pid: Option<u32>) -> std::io::Result<()> {
    let child = pid.and_then(|pid| i32::try_from(pid).ok()).and_then(|pid| {
        Some(Child {
            pid,
            start: Process::read(pid)?.start,
        })
    });
    fs::write(scratch.join(RECORD), serde_json::to_vec(&child)?)
}

/// Forgets the process of `scratch`, once its group is gone.
pub fn forget(scratch: &Path) -> std::io::Result<()> {
    fs::remove_file(scratch.join(RECORD))
}

/// Ends all processes left over from earlier runs that work in scratch folders under `partials`.
pub(super) fn end_leftovers(partials: &Path) -> std::io::Result<()> {
    let Ok(folders) = fs::read_dir(partials) else {
        return Ok(());
    };
    let scratches: Vec<PathBuf> = folders
        .filter_map(|folder| Some(folder.ok()?.path()))
        .filter(|folder| folder.join(RECORD).exists())
        .collect();
    for scratch in scratches {
        let child: Option<Child> = fs::read(scratch.join(RECORD))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .flatten();
        // A killed process may have started another a moment before: look again until none is left.
        for _ in 0..50 {
            let left = leftovers(&scratch, child)?;
            if left.is_empty() {
                break;
            }
            for pid in left {
                // It may have ended by itself meanwhile.
                let _ = kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        forget(&scratch)?;
    }
    Ok(())
}

/// Processes of a record that are alive: those that carry the scratch folder in their environment, and the members of
/// the child's group while the child itself is alive (its number alone could belong to somebody else by now).
fn leftovers(scratch: &Path, child: Option<Child>) -> std::io::Result<Vec<Pid>> {
    let marker = format!("OUT={}/", scratch.display());
    let group = child
        .filter(|child| {
            Process::read(child.pid).is_some_and(|process| process.start == child.start)
        })
        .map(|child| child.pid);
    let mut left = Vec::new();
    for item in fs::read_dir("/proc")? {
        let name = item?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Some(process) = Process::read(pid).filter(|process| process.state != 'Z') else {
            continue;
        };
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let marked = environment
            .split(|&byte| byte == 0)
            .any(|variable| variable.starts_with(marker.as_bytes()));
        if marked || group == Some(process.group) {
            left.extend(Pid::from_raw(pid));
        }
    }
    Ok(left)
}

struct Process {
    state: char,
    group: i32,
    start: u64,
}

impl Process {
    /// From `/proc/<pid>/stat`: fields 3, 5 and 22 (proc(5)); the name in field 2 may hold anything but ends at the last `)`.
    fn read(pid: i32) -> Option<Self> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            group: fields.get(2)?.parse().ok()?,
            start: fields.get(19)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_grandchild_left_over_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = folder.path().join("f");
        fs::create_dir(&scratch).unwrap();
        record(&scratch, None).unwrap();
        let mut shell = Command::new("sh");
        shell
            .args(["-c", "sleep 60 & echo $! > pid; kill -9 $$"])
            .current_dir(&scratch)
            .env("OUT", scratch.join("out"))
            .process_group(0);
        let mut child = shell.spawn().unwrap();
        child.wait().unwrap();
        let pid: i32 = fs::read_to_string(scratch.join("pid"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert!(Process::read(pid).is_some_and(|process| process.state != 'Z'));
        end_leftovers(folder.path()).unwrap();
        assert!(Process::read(pid).is_none_or(|process| process.state == 'Z'));
        assert!(!scratch.join(RECORD).exists());
    }

    #[test]
    fn another_process_of_the_same_number_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let child = Child {
            pid: std::process::id() as i32,
            start: 1,
        };
        assert_eq!(leftovers(folder.path(), Some(child)).unwrap(), []);
    }
}
