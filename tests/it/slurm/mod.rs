//! Nodes as jobs of a real Slurm cluster on loopback, and what becomes of them when something fails.

mod failures;
mod interruption;
mod judge;
mod matrix;

use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::faults::digests;
use crate::support::{Cluster, Project, cluster};

const SLURM: [&str; 4] = ["run", "pipelines/p.yaml", "--executor", "slurm"];

impl Project {
    fn on(self, cluster: &Cluster) -> Self {
        let path = std::env::var("PATH").unwrap();
        self.variable("SLURM_CONF", cluster.conf())
            .variable("PATH", &path)
    }

    /// With a folder `flags`, which scripts see as `${FLAGS}`.
    pub fn with_flags(self) -> Self {
        std::fs::create_dir(self.path("flags")).unwrap();
        let flags = self.path("flags").display().to_string();
        self.variable("FLAGS", &flags)
    }

    pub fn flag(&self, name: &str) {
        std::fs::write(self.path("flags").join(name), "").unwrap();
    }

    fn has(&self, flag: &str) -> bool {
        self.path("flags").join(flag).exists()
    }

    pub fn begin(&self) -> Child {
        let mut command = self.command(&SLURM);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    }

    /// A program of Slurm's name that comes first on the path.
    pub fn instead_of(self, program: &str, script: &str) -> Self {
        let name = format!("bin/{program}");
        self.write(&name, format!("#!/bin/sh\n{script}\n"));
        let path = self.path(&name);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = format!(
            "{}:{}",
            self.path("bin").display(),
            std::env::var("PATH").unwrap()
        );
        self.variable("PATH", &path)
    }

    /// The first time that it gives a job to Slurm, Slurm has it and flow does not live to hear of it. The next run starts
    /// while this is still going on.
    fn killing_while_it_submits(self, cluster: &Cluster) -> Self {
        let sbatch = cluster.ask("sh", &["-c", "command -v sbatch"]);
        let script = format!(
            "if [ -e '{1}' ]; then exec {0} \"$@\"; fi\ntouch '{1}'; kill -9 $PPID; sleep 1; {0} \"$@\"",
            sbatch.trim(),
            self.path("flags/killed").display()
        );
        self.instead_of("sbatch", &script)
    }

    fn jobs_left(&self) -> Vec<String> {
        let items = std::fs::read_dir(self.path("cache/jobs")).unwrap();
        items
            .map(|item| item.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

#[track_caller]
fn wait_for(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "waited too long for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn kill(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// Tables and files in and out, an empty file, a link, an order that counts.
const WORK: &str = r#"
stages:
  rows: { uses: sql, with: { query: "select range::varchar as id, 'question ' || range as question from range(50) order by range desc" } }
  words: { uses: command, inputs: { rows: rows }, with: { run: 'echo reading; sha256sum < $IN_rows > $OUT/sum; touch $OUT/empty; ln -s sum $OUT/link' } }
  other: { uses: command, inputs: { rows: rows }, with: { run: 'wc -c < $IN_rows > $OUT/size', files: [note.txt] } }
  both: { uses: command, inputs: { words: words, other: other }, with: { run: 'cp -r $IN_words $OUT/words; cat $IN_other/size > $OUT/size' } }
  count: { uses: sql, inputs: { rows: rows }, with: { query: 'select count(*) as n from rows' } }
"#;

#[test]
fn jobs_give_what_this_machine_gives() {
    let Some(cluster) = cluster() else { return };
    let new = || Project::with_pipeline(WORK).file("note.txt", "a note\n");
    let local = new();
    local.run();
    let project = new().on(&cluster);
    let outcome = project.flow(&SLURM).success();
    assert_eq!(digests(&project), digests(&local));
    assert_eq!(project.ran(), ["both", "count", "other", "rows", "words"]);
    assert_eq!(cluster.jobs("words").len(), 1, "{}", outcome.stderr);
    assert!(cluster.jobs("count").is_empty());
    // What a job said is in the node's log, as if it had been said here.
    let run = project.latest()["id"].as_str().unwrap().to_owned();
    let log = std::fs::read_to_string(project.path(&format!("runs/{run}/logs/words.log"))).unwrap();
    assert!(log.contains("reading"), "{log}");
    assert!(project.jobs_left().is_empty());
    project.flow(&["cache", "verify"]).success();
    project.flow(&SLURM).success();
    assert!(project.ran().is_empty());
    project.run();
    assert!(project.ran().is_empty());
}

#[test]
fn a_secret_reaches_its_job_and_no_file() {
    let Some(cluster) = cluster() else { return };
    let project = Project::with_pipeline(
        "stages:\n  secretive: { uses: command, with: { run: 'test \"$(printf %s \"$TOKEN\" | wc -c)\" = 14; test -z \"$OTHER\"; tr \"\\0\" \"\\n\" < /proc/$PPID/environ | cut -d= -f1 > ${FLAGS}/names; touch ${FLAGS}/started; while [ ! -e ${FLAGS}/go ]; do sleep 0.05; done', pass_env: [TOKEN] } }\n",
    )
    .on(&cluster)
    .with_flags()
    .variable("TOKEN", "planted-5ecret")
    .variable("OTHER", "not named");
    let run = project.begin();
    wait_for("the script", || project.has("started"));
    // The job itself has what is named, and nothing else of this process.
    let names = std::fs::read_to_string(project.path("flags/names")).unwrap();
    let has = |name: &str| names.lines().any(|line| line == name);
    assert!(has("TOKEN") && !has("OTHER"), "{names}");
    let mut found = Vec::new();
    crate::secrets::holding(&project.path("cache"), "planted-5ecret", &mut found);
    crate::secrets::holding(&project.path("runs"), "planted-5ecret", &mut found);
    project.flag("go");
    project.outcome(run.wait_with_output().unwrap()).success();
    assert_eq!(found, Vec::<String>::new());
}
