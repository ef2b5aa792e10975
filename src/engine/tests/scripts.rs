//! What scripts see, and what becomes of those that do not end.

use std::path::Path;

use super::Project;
use crate::engine::RunState;

#[test]
fn a_slow_script_is_ended_in_time() {
    let project =
        Project::new("stages:\n  a: { uses: command, with: { run: 'sleep 60', timeout: 0.2 } }\n");
    let ran = project.run();
    assert_eq!(ran.headline(), "the script did not end in time");
    assert!(ran.outcome.seconds < 30.0);
}

#[test]
fn scripts_see_only_what_is_declared() {
    let project = Project::new(
        "stages:\n  a: { uses: command, with: { run: 'env | cut -d= -f1 | sort > $OUT/names; pwd; echo $GREETING > $OUT/greeting', env: { GREETING: hello } } }\n",
    );
    let ran = project.run();
    assert_eq!(ran.outcome.state, RunState::Finished, "{}", ran.headline());
    let folder = project
        .path("cache/objects")
        .join(ran.digests()["a"].to_string());
    assert_eq!(
        std::fs::read_to_string(folder.join("greeting")).unwrap(),
        "hello\n"
    );
    let names = std::fs::read_to_string(folder.join("names")).unwrap();
    let allowed = [
        "FILES",
        "GREETING",
        "HOME",
        "LANG",
        "LD_LIBRARY_PATH",
        "OUT",
        "PATH",
        "PWD",
        "TMPDIR",
        "OLDPWD",
        "SHLVL",
        "_",
    ];
    assert!(names.lines().all(|name| allowed.contains(&name)), "{names}");
}

#[test]
fn a_script_that_leaves_a_writer_behind_gives_what_was_there_at_its_end() {
    let project = Project::new(
        "stages:\n  a: { uses: command, with: { run: 'echo now > $OUT/x; (sleep 0.5; echo late > $OUT/late) &' } }\n",
    );
    let ran = project.run();
    assert_eq!(ran.outcome.state, RunState::Finished, "{}", ran.headline());
    std::thread::sleep(std::time::Duration::from_millis(700));
    let files = names(
        &project
            .path("cache/objects")
            .join(ran.digests()["a"].to_string()),
    );
    assert_eq!(files, ["x"]);
}

fn names(folder: &Path) -> Vec<String> {
    folder
        .read_dir()
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect()
}
