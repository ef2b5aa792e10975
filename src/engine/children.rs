//! Processes that an op started and that outlive a killed flow: they are ended before anything of theirs is used again.
//!
//! A guard ends them with flow (`ops::command::guard`); here it is made up for where it was killed as well. They are known by
//! their environment, where `$OUT` is a folder in the node's scratch folder; nothing that they write there is kept.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use crate::digest::Digest;
use crate::graph::Fingerprint;
use rustix::process::{Pid, Signal, kill_process};

/// Ends all processes left over from earlier runs that work in scratch folders in `partials`, but for those of nodes that
/// are somebody else's.
pub(crate) fn end_leftovers(
    partials: &Path,
    elsewhere: &dyn Fn(Fingerprint) -> bool,
) -> std::io::Result<()> {
    let unfinished = fs_err::read_dir(partials).is_ok_and(|mut folders| folders.next().is_some());
    if !unfinished {
        return Ok(());
    }
    // A killed process may have started another a moment before: look again until none is left.
    for _ in 0..50 {
        let left = leftovers(partials, elsewhere)?;
        if left.is_empty() {
            break;
        }
        for pid in left {
            // It may have ended by itself meanwhile.
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// The processes with a scratch folder in their environment, and those of their groups, which may have emptied theirs.
fn leftovers(
    partials: &Path,
    elsewhere: &dyn Fn(Fingerprint) -> bool,
) -> std::io::Result<Vec<Pid>> {
    let marker = format!("OUT={}/", std::path::absolute(partials)?.display());
    let (mut all, mut groups) = (Vec::new(), HashSet::new());
    for item in fs_err::read_dir("/proc")? {
        let name = item?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        // One that has ended meanwhile, or is another user's, is not ours to end.
        let Some(group) = group(pid) else {
            continue;
        };
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let marked = environment
            .split(|&byte| byte == 0)
            .filter_map(|variable| variable.strip_prefix(marker.as_bytes()))
            .any(|rest| !fingerprint(rest).is_some_and(elsewhere));
        if marked {
            groups.insert(group);
        }
        all.push((pid, group));
    }
    let left = all
        .into_iter()
        .filter(|(_, group)| groups.contains(group))
        .filter_map(|(pid, _)| Pid::from_raw(pid));
    Ok(left.collect())
}

/// Whose scratch folder a path in it is.
fn fingerprint(rest: &[u8]) -> Option<Fingerprint> {
    let name = rest.split(|&byte| byte == b'/').next()?;
    let digest: Digest = std::str::from_utf8(name).ok()?.parse().ok()?;
    Some(Fingerprint(digest))
}

/// The group of a process that is alive, from `/proc/<pid>/stat`: state and group are fields 3 and 5 (proc(5)); the name
/// in field 2 may hold anything but ends at the last `)`.
fn group(pid: i32) -> Option<i32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    if *fields.first()? == "Z" {
        return None;
    }
    fields.get(2)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    /// Starts a script that leaves processes behind and dies; gives the numbers it wrote down.
    fn abandoned(partials: &Path, script: &str) -> Vec<i32> {
        let scratch = partials.join("f");
        std::fs::create_dir_all(&scratch).unwrap();
        let mut shell = Command::new("/bin/sh");
        shell
            .args(["-c", script])
            .current_dir(&scratch)
            .env("OUT", scratch.join("out"))
            .process_group(0);
        shell.spawn().unwrap().wait().unwrap();
        let pids = std::fs::read_to_string(scratch.join("pids")).unwrap();
        pids.lines().map(|pid| pid.parse().unwrap()).collect()
    }

    #[test]
    fn what_a_script_left_behind_is_ended() {
        let folder = tempfile::tempdir().unwrap();
        let script = "sleep 60 & echo $! >> pids; env -i sleep 60 & echo $! >> pids; kill -9 $$";
        let left = abandoned(folder.path(), script);
        assert!(left.iter().all(|&pid| group(pid).is_some()));
        end_leftovers(folder.path(), &|_| false).unwrap();
        assert!(left.iter().all(|&pid| group(pid).is_none()), "{left:?}");
    }

    #[test]
    fn what_works_elsewhere_is_left_alone() {
        let (here, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(here.path().join("f")).unwrap();
        let left = abandoned(elsewhere.path(), "sleep 60 & echo $! >> pids; kill -9 $$");
        end_leftovers(here.path(), &|_| false).unwrap();
        assert!(left.iter().all(|&pid| group(pid).is_some()));
        end_leftovers(elsewhere.path(), &|_| false).unwrap();
    }

    #[test]
    fn what_a_cluster_works_at_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let scratch = folder.path().join(Digest::of("node").to_string());
        std::fs::create_dir(&scratch).unwrap();
        let mut child = Command::new("sleep")
            .arg("60")
            .env("OUT", scratch.join("out"))
            .process_group(0)
            .spawn()
            .unwrap();
        let theirs = |found: Fingerprint| found == Fingerprint(Digest::of("node"));
        end_leftovers(folder.path(), &theirs).unwrap();
        assert!(group(child.id() as i32).is_some());
        end_leftovers(folder.path(), &|_| false).unwrap();
        assert!(!child.wait().unwrap().success());
    }
}
