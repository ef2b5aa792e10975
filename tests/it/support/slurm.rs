//! A Slurm cluster for the tests, where there is Slurm.

use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

/// Ends when its standard input does, which is when the tests end.
struct Daemons {
    conf: String,
    talk: Mutex<(ChildStdin, BufReader<ChildStdout>)>,
}

/// The one cluster, for one test at a time.
pub struct Cluster {
    daemons: &'static Daemons,
    _alone: MutexGuard<'static, ()>,
}

#[expect(clippy::zombie_processes, reason = "it ends after this process does")]
static DAEMONS: LazyLock<Option<Daemons>> = LazyLock::new(|| {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/slurm_cluster.py");
    let mut child = Command::new("python3")
        .arg(script)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("there is a python3");
    let (stdin, stdout) = (child.stdin.take()?, child.stdout.take()?);
    let (mut stdout, mut conf) = (BufReader::new(stdout), String::new());
    stdout.read_line(&mut conf).expect("it prints text");
    if conf.is_empty() {
        let status = child.wait().expect("it has ended");
        assert_eq!(status.code(), Some(77), "the cluster did not start");
        return None;
    }
    Some(Daemons {
        conf: conf.trim().to_owned(),
        talk: Mutex::new((stdin, stdout)),
    })
});

/// The cluster; `None`, loudly, where there is no Slurm.
pub fn cluster() -> Option<Cluster> {
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(daemons) = &*DAEMONS else {
        // Past the capture of the test harness: nobody should take this for a test that was run.
        let _ = std::io::stderr().write_all(b"skipped: no Slurm\n");
        return None;
    };
    Some(Cluster {
        daemons,
        _alone: alone,
    })
}

impl Cluster {
    /// For `SLURM_CONF`.
    pub fn conf(&self) -> &str {
        &self.daemons.conf
    }

    /// Standard output of one of Slurm's programs.
    pub fn ask(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .args(arguments)
            .env("SLURM_CONF", self.conf())
            .output()
            .expect("Slurm is there");
        String::from_utf8(output.stdout).expect("Slurm speaks UTF-8")
    }

    /// Ids of all jobs and tasks, also ended ones, whose name ends in `node`, and their states.
    pub fn jobs(&self, node: &str) -> Vec<(String, String)> {
        let text = self.ask(
            "squeue",
            &["--states=all", "--array", "--noheader", "--format=%i|%T|%j"],
        );
        let mut jobs = Vec::new();
        for line in text.lines() {
            let mut fields = line.trim().split('|').map(str::to_owned);
            if let (Some(id), Some(state), Some(name)) =
                (fields.next(), fields.next(), fields.next())
                && name.ends_with(&format!("-{node}"))
            {
                jobs.push((id, state));
            }
        }
        jobs.sort();
        jobs
    }

    /// The machine that a job or task is on.
    pub fn machine(&self, id: &str) -> String {
        let text = self.ask("squeue", &["--noheader", "--format=%N", "--jobs", id]);
        text.trim().to_owned()
    }

    /// Takes the power from a machine.
    pub fn fail(&self, machine: &str) {
        self.tell(machine);
    }

    /// Gives it back.
    pub fn bring_back(&self, machine: &str) {
        self.tell(&format!("+{machine}"));
    }

    fn tell(&self, what: &str) {
        let mut talk = self
            .daemons
            .talk
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (stdin, stdout) = &mut *talk;
        writeln!(stdin, "{what}").expect("the cluster listens");
        let mut answer = String::new();
        stdout.read_line(&mut answer).expect("it prints text");
        assert_eq!(answer.trim(), "ok");
    }
}
