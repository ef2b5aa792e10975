//! A judge in shards, and a machine that fails under it.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use super::{SLURM, wait_for};
use crate::faults::digests;
use crate::support::{Project, cluster, judge_telling};

const JUDGED: &str = r#"
models: { wise: { url: "${JUDGE}", name: wise, api_key_env: JUDGE_KEY } }
stages:
  rows: { uses: sql, with: { query: "select range::varchar as id, 'question ' || range || repeat(' and so on', (range % 7)::int) as question from range(200)" } }
  judged: { uses: judge, inputs: { rows: rows }, with: { model: wise, prompt: prompt.md, choices: "[0, 1]", shards: 3 } }
"#;
const PROMPT: &str = "{% block user %}{{ question }}.{% endblock %}\n";

/// A judge behind an address that counts how often each prompt was answered, and answers no more than `most` before it is
/// let go.
struct Counting {
    state: Mutex<Counted>,
    changed: Condvar,
}

struct Counted {
    answers: BTreeMap<String, u32>,
    given: usize,
    most: usize,
}

impl Counting {
    fn start(most: usize) -> (Arc<Self>, String) {
        let counting = Arc::new(Self {
            state: Mutex::new(Counted {
                answers: BTreeMap::new(),
                given: 0,
                most,
            }),
            changed: Condvar::new(),
        });
        let (judge, listener) = (Arc::clone(&counting), Arc::clone(&counting));
        let answer = move |request: &str| {
            let mut state = judge.state.lock().unwrap();
            while state.given >= state.most {
                state = judge.changed.wait(state).unwrap();
            }
            state.given += 1;
            i64::from(request.contains('3'))
        };
        let told = move |request: &str| {
            let mut state = listener.state.lock().unwrap();
            *state.answers.entry(request.to_owned()).or_default() += 1;
        };
        (counting, judge_telling(answer, told))
    }

    fn let_go(&self) {
        self.state.lock().unwrap().most = usize::MAX;
        self.changed.notify_all();
    }

    /// How many prompts were answered, and how many of them more than once.
    fn counts(&self) -> (usize, usize) {
        let state = self.state.lock().unwrap();
        let twice = state.answers.values().filter(|&&times| times > 1).count();
        (state.answers.len(), twice)
    }
}

fn judged(node: &str, address: &str) -> Project {
    Project::with_pipeline(&JUDGED.replace("judged:", &format!("{node}:")))
        .file("prompt.md", PROMPT)
        .variable("JUDGE", address)
        .variable("JUDGE_KEY", "sk-planted-a8f3")
}

#[test]
fn a_judge_in_shards_gives_what_one_gives() {
    let Some(cluster) = cluster() else { return };
    let (_, address) = Counting::start(usize::MAX);
    let local = judged("sharded", &address);
    local.run();
    let (counting, address) = Counting::start(usize::MAX);
    let project = judged("sharded", &address).on(&cluster);
    project.flow(&SLURM).success();
    assert_eq!(digests(&project), digests(&local));
    assert_eq!(counting.counts(), (200, 0));
    let jobs = cluster.jobs("sharded");
    assert_eq!(jobs.len(), 3, "{jobs:?}");
    assert!(project.jobs_left().is_empty());
    // Neither the number of shards nor the place is part of what a verdict is.
    project
        .flow(&["run", "pipelines/p.yaml", "--set", "sharded.with.shards=1"])
        .success();
    assert!(project.ran().is_empty());
}

#[test]
fn a_machine_that_fails_loses_no_verdict() {
    let Some(cluster) = cluster() else { return };
    let (_, address) = Counting::start(usize::MAX);
    let local = judged("powerless", &address);
    local.run();
    // Held in the middle of the work: what is asked then has no answer yet.
    let (counting, address) = Counting::start(80);
    let project = judged("powerless", &address).on(&cluster);
    let run = project.begin();
    wait_for("the judge", || counting.counts().0 == 80);
    // An answer is durable a moment after it is given.
    std::thread::sleep(Duration::from_millis(500));
    let running: Vec<_> = cluster
        .jobs("powerless")
        .into_iter()
        .filter(|(_, state)| state == "RUNNING")
        .collect();
    let machine = cluster.machine(&running[0].0);
    cluster.fail(&machine);
    // The kernel closes the connections of what was killed.
    std::thread::sleep(Duration::from_millis(500));
    counting.let_go();
    let outcome = project.outcome(run.wait_with_output().unwrap());
    cluster.bring_back(&machine);
    let outcome = outcome.success();
    assert_eq!(digests(&project), digests(&local), "{}", outcome.stderr);
    assert_eq!(counting.counts(), (200, 0));
    assert_eq!(
        cluster.jobs("powerless").len(),
        3,
        "{:?}",
        cluster.jobs("powerless")
    );
    project.flow(&["cache", "verify"]).success();
}
