//! A shared cache: one machine's results are found by another, which fetches no more than it reads; whatever is wrong with
//! what is there, no run is.

use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use flow::failpoint::REMOTE_PLACES;
use tempfile::TempDir;

use crate::faults::{digests, mixed};
use crate::support::Project;

/// A folder that stands for a bucket.
struct Bucket(TempDir);

impl Bucket {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn address(&self) -> String {
        format!("file://{}/shared", self.0.path().display())
    }

    /// Another machine: the same project in another folder, with a cache of its own.
    fn machine(&self) -> Project {
        mixed().variable("FLOW_CACHE_REMOTE", &self.address())
    }

    /// The objects in one of its folders.
    fn objects(&self, folder: &str) -> Vec<PathBuf> {
        let folder = self.0.path().join("shared/flow-1").join(folder);
        let mut objects: Vec<_> = std::fs::read_dir(folder)
            .map(|items| items.map(|item| item.unwrap().path()).collect())
            .unwrap_or_default();
        objects.sort();
        objects
    }

    fn files(&self) -> usize {
        count(self.0.path())
    }
}

fn count(folder: &Path) -> usize {
    let items = std::fs::read_dir(folder).unwrap();
    let sizes = items.map(|item| {
        let path = item.unwrap().path();
        if path.is_dir() { count(&path) } else { 1 }
    });
    sizes.sum()
}

/// Tables and sets of files in the cache of a project.
fn here(project: &Project) -> (u64, u64) {
    let size = project.flow(&["cache", "size", "--json"]).success().json();
    let number = |key: &str| size[key].as_u64().unwrap();
    (number("tables"), number("objects"))
}

fn states(project: &Project) -> Vec<String> {
    let plan = project.flow(&["plan", "pipelines/p.yaml", "--json"]);
    let nodes = plan.success().json()["nodes"].as_array().unwrap().clone();
    let state = |node: &serde_json::Value| {
        let elsewhere = node["elsewhere"].as_bool().unwrap_or_default();
        let state = node["state"].as_str().unwrap();
        if elsewhere {
            "remote".to_owned()
        } else {
            state.to_owned()
        }
    };
    nodes.iter().map(state).collect()
}

#[test]
fn a_second_machine_runs_nothing_and_fetches_nothing() {
    let bucket = Bucket::new();
    let (first, second) = (bucket.machine(), bucket.machine());
    let said = first.run().stderr;
    assert!(said.contains("shared cache: 6 results sent, "), "{said}");
    assert_eq!(bucket.objects("entries").len(), 6);
    assert_eq!(states(&first), ["cached"; 6]);

    assert_eq!(states(&second), ["remote"; 6]);
    let plan = second.flow(&["plan", "pipelines/p.yaml"]).success();
    assert!(
        plan.stdout.contains("cached    rows     (remote)"),
        "{}",
        plan.stdout
    );
    assert_eq!(count(&second.path("")), 3, "a plan writes nothing");
    let said = second.run().stderr;
    assert!(
        said.contains("shared cache: 6 results are only there"),
        "{said}"
    );
    assert_eq!(second.with_status("cached").len(), 6);
    assert_eq!(digests(&second), digests(&first));
    assert_eq!(
        here(&second),
        (0, 0),
        "nothing was read, so nothing is here"
    );

    // Known from now on, even where nobody can be asked.
    std::fs::rename(bucket.0.path().join("shared"), bucket.0.path().join("away")).unwrap();
    assert_eq!(states(&second), ["remote"; 6]);
    second
        .flow(&["run", "pipelines/p.yaml", "--offline"])
        .success();
    assert_eq!(second.with_status("cached").len(), 6);
}

#[test]
fn what_a_node_reads_is_fetched_and_no_more() {
    let bucket = Bucket::new();
    let (first, second) = (bucket.machine(), bucket.machine());
    first.run();
    let text = std::fs::read_to_string(second.path("pipelines/p.yaml")).unwrap();
    let edited = text.replace("count(*) as n from kept", "count(*) + 1 as n from kept");
    second.write("pipelines/p.yaml", edited);
    let said = second.run().stderr;
    assert_eq!(second.ran(), ["counted"]);
    assert!(said.contains("1 artifact fetched ("), "{said}");
    assert_eq!(here(&second), (2, 0), "`kept` and `counted`");

    // What somebody wants to see comes too, and everything where that is asked for.
    assert_eq!(second.rows("rows").as_array().unwrap().len(), 40);
    assert_eq!(here(&second), (3, 0));
    assert_eq!(second.query("select count(*) as n from judged")[0]["n"], 40);
    assert_eq!(here(&second), (4, 0));
    let files = second.flow(&["data", "latest", "files"]).success();
    assert!(files.stdout.contains("size"), "{}", files.stdout);
    assert_eq!(here(&second), (4, 1));
    let pulled = second.flow(&["cache", "pull"]).success();
    assert!(
        pulled.stdout.starts_with("1 artifact fetched, "),
        "{}",
        pulled.stdout
    );
    assert_eq!(here(&second), (4, 2));
    second.flow(&["cache", "verify"]).success();
    assert_eq!(states(&second), ["cached"; 6]);

    // Dropping results here drops none there.
    let before = bucket.files();
    second.flow(&["cache", "gc", "--keep-runs", "0"]).success();
    assert_eq!(bucket.files(), before);
    second.run();
    assert_eq!(second.ran(), Vec::<String>::new());
    assert_eq!(here(&second), (0, 0));
}

#[test]
fn a_file_of_several_parts_comes_back_whole() {
    let bucket = Bucket::new();
    let machine = || {
        let text = "stages:\n  big: { uses: command, with: { run: 'yes flow | head -c 30000000 > $OUT/x; cp $OUT/x $OUT/y; : > $OUT/empty' } }\n";
        Project::with_pipeline(text).variable("FLOW_CACHE_REMOTE", &bucket.address())
    };
    let (first, second) = (machine(), machine());
    first.run();
    assert_eq!(bucket.objects("contents").len(), 1, "equal files are one");
    second.run();
    assert_eq!(second.ran(), Vec::<String>::new());
    second.flow(&["cache", "pull"]).success();
    second.flow(&["cache", "verify"]).success();
    assert_eq!(here(&second), (0, 1));
}

/// Changes the second third of each file.
fn damage(objects: &[PathBuf]) {
    for object in objects {
        let mut bytes = std::fs::read(object).unwrap();
        let third = bytes.len() / 3;
        bytes[third..2 * third + 1].fill(b'?');
        std::fs::write(object, bytes).unwrap();
    }
}

fn remove(objects: &[PathBuf]) {
    for object in objects {
        std::fs::remove_file(object).unwrap();
    }
}

/// Whatever became of the objects in a folder: who needs them makes them again, says so, and mends them for the others.
fn heals(folder: &str, harm: fn(&[PathBuf]), says: &str) {
    let bucket = Bucket::new();
    let first = bucket.machine();
    first.run();
    let undisturbed = digests(&first);
    harm(&bucket.objects(folder));
    let second = bucket.machine();
    // Reads everything.
    let outcome = second.flow(&[
        "run",
        "pipelines/p.yaml",
        "--force",
        "both",
        "--force",
        "counted",
    ]);
    let said = outcome.success().stderr;
    assert!(said.contains(says), "{folder}:\n{said}");
    assert_eq!(digests(&second), undisturbed, "{folder}");
    second.flow(&["cache", "verify"]).success();
    second.run();
    assert_eq!(second.ran(), Vec::<String>::new(), "{folder}");

    let third = bucket.machine();
    let said = third.run().stderr;
    assert!(
        !said.contains("warning") && !said.contains('!'),
        "{folder}:\n{said}"
    );
    assert_eq!(third.with_status("cached").len(), 6, "{folder}");
    if third.flow(&["cache", "pull"]).code == 1 {
        // What nobody had read was found out just now.
        third.run();
        let unread = if folder == "tables" {
            "counted"
        } else {
            "both"
        };
        assert_eq!(third.ran(), [unread], "{folder}");
        third.flow(&["cache", "pull"]).success();
    }
    assert_eq!(here(&third), (4, 2), "{folder}");
    third.flow(&["cache", "verify"]).success();
}

#[test]
fn content_that_is_not_what_its_name_says_is_no_result() {
    heals(
        "tables",
        damage,
        ".parquet` in the shared cache is not used: ",
    );
    heals(
        "contents",
        damage,
        "` in the shared cache is not used: its digest is",
    );
    heals("files", damage, ".json` in the shared cache is not used: ");
}

#[test]
fn content_that_is_gone_is_made_again() {
    heals(
        "tables",
        remove,
        ".parquet` is not in the shared cache, where an entry says it is",
    );
    heals(
        "contents",
        remove,
        "` is not in the shared cache, where an entry says it is",
    );
    heals(
        "files",
        remove,
        ".json` is not in the shared cache, where an entry says it is",
    );
}

#[test]
fn a_damaged_entry_is_no_entry() {
    let bucket = Bucket::new();
    let first = bucket.machine();
    first.run();
    damage(&bucket.objects("entries"));
    // Otherwise that one is enough.
    damage(&bucket.objects("pipelines"));
    let second = bucket.machine();
    let said = second.run().stderr;
    assert!(said.contains("in the shared cache is not used: "), "{said}");
    assert_eq!(second.ran().len(), 6);
    assert_eq!(digests(&second), digests(&first));
    let third = bucket.machine();
    third.run();
    assert_eq!(third.ran(), Vec::<String>::new());
}

#[test]
fn a_machine_that_knows_another_pipeline_finds_the_entries_one_by_one() {
    let bucket = Bucket::new();
    bucket.machine().run();
    remove(&bucket.objects("pipelines"));
    let second = bucket.machine();
    assert_eq!(states(&second), ["remote"; 6]);
    second.run();
    assert_eq!(
        bucket.objects("pipelines").len(),
        1,
        "it is there for the next"
    );
}

#[test]
fn offline_nothing_is_asked_and_nothing_sent() {
    let bucket = Bucket::new();
    let machine = || {
        let text = "stages:\n  rows: { uses: source, with: { path: rows.csv } }\n  files: { uses: command, inputs: { rows: rows }, with: { run: 'cp $IN_rows $OUT' } }\n";
        Project::with_pipeline(text)
            .file("rows.csv", "n\n1\n")
            .variable("FLOW_CACHE_REMOTE", &bucket.address())
    };
    let first = machine();
    let said = first
        .flow(&["run", "pipelines/p.yaml", "--offline"])
        .success()
        .stderr;
    assert!(!said.contains("shared cache"), "{said}");
    assert_eq!(bucket.files(), 0);
    let pushed = first.flow(&["cache", "push"]).success();
    assert!(
        pushed.stdout.starts_with("2 results sent, "),
        "{}",
        pushed.stdout
    );
    let again = first.flow(&["cache", "push", "--json"]).success().json();
    assert_eq!(again["sent"], 0);
    let size = first
        .flow(&["cache", "size", "--remote", "--json"])
        .success()
        .json();
    for kind in ["tables", "files"] {
        assert_eq!(size["remote"][kind], 1);
    }
    assert_eq!(size["remote"]["entries"], 2);
    let second = machine();
    second
        .flow(&["run", "pipelines/p.yaml", "--offline"])
        .success();
    assert_eq!(second.ran().len(), 2);
}

/// A port where nobody listens.
fn nowhere(project: Project) -> Project {
    project
        .variable("FLOW_CACHE_REMOTE", "s3://bucket/x")
        .variable("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        .variable("AWS_ACCESS_KEY_ID", "planted-key")
        .variable("AWS_SECRET_ACCESS_KEY", "planted-5ecret")
        .variable("AWS_SESSION_TOKEN", "planted-token")
}

#[test]
fn a_shared_cache_that_cannot_be_reached_costs_a_warning() {
    let project = nowhere(mixed());
    let said = project.run().stderr;
    assert_eq!(said.matches("cannot be used").count(), 1, "{said}");
    assert!(said.contains("`flow cache push`"), "{said}");
    assert_eq!(project.ran().len(), 6);
    let pushed = project.flow(&["cache", "push"]).code(1);
    assert!(
        pushed.stderr.contains("help: check the address"),
        "{}",
        pushed.stderr
    );
    project.flow(&["plan", "pipelines/p.yaml"]).success();
    for planted in ["planted-5ecret", "planted-token"] {
        let mut found = Vec::new();
        crate::secrets::holding(&project.path(""), planted, &mut found);
        assert_eq!(found, Vec::<String>::new());
        assert!(!said.contains(planted) && !pushed.stderr.contains(planted));
    }
    // Once there is one, what was made meanwhile goes there.
    let bucket = Bucket::new();
    let project = project.variable("FLOW_CACHE_REMOTE", &bucket.address());
    let said = project.run().stderr;
    assert!(said.contains("6 results sent"), "{said}");
}

#[test]
fn what_is_out_of_reach_is_made_here() {
    let bucket = Bucket::new();
    bucket.machine().run();
    let second = bucket.machine();
    second.run();
    let state = std::fs::read_to_string(second.path("cache/remote.json")).unwrap();
    second.write(
        "cache/remote.json",
        state.replace(&bucket.address(), "s3://bucket/x"),
    );
    let second = nowhere(second);
    second.run();
    assert_eq!(second.ran(), Vec::<String>::new(), "nothing had to be read");
    let said = second
        .flow(&["run", "pipelines/p.yaml", "--force", "counted"])
        .success()
        .stderr;
    assert_eq!(said.matches("cannot be used").count(), 1, "{said}");
    assert_eq!(second.ran(), ["counted", "judged", "kept", "rows"]);
    assert_eq!(second.with_status("cached"), ["both", "files"]);
}

#[test]
fn two_machines_may_send_the_same_at_once() {
    let bucket = Bucket::new();
    let machines: Vec<Project> = (0..3).map(|_| bucket.machine()).collect();
    let runs: Vec<_> = machines
        .iter()
        .map(|machine| {
            let mut command = machine.command(&["run", "pipelines/p.yaml"]);
            command.stderr(Stdio::piped()).stdout(Stdio::null());
            command.spawn().unwrap()
        })
        .collect();
    for (machine, run) in machines.iter().zip(runs) {
        let said = machine
            .outcome(run.wait_with_output().unwrap())
            .success()
            .stderr;
        assert!(!said.contains("could not"), "{said}");
        assert_eq!(digests(machine), digests(&machines[0]));
    }
    let last = bucket.machine();
    last.run();
    assert_eq!(last.ran(), Vec::<String>::new());
    last.flow(&["cache", "pull"]).success();
    last.flow(&["cache", "verify"]).success();
}

#[test]
fn a_kill_or_a_failing_disk_on_the_way_loses_nothing() {
    let undisturbed = {
        let project = mixed();
        project.run();
        digests(&project)
    };
    for place in REMOTE_PLACES {
        for action in ["kill", "kill@3", "enospc"] {
            let bucket = Bucket::new();
            let what = format!("{place}={action}");
            let project = if place == "remote.fetched" {
                bucket.machine().run();
                let project = bucket.machine();
                let text = std::fs::read_to_string(project.path("pipelines/p.yaml")).unwrap();
                // All tables and files are read by something new.
                let edited = text
                    .replace("choice = 1 order", "choice >= 1 order")
                    .replace("$OUT/total'", "$OUT/all'");
                project.write("pipelines/p.yaml", edited);
                project
            } else {
                bucket.machine()
            };
            let mut command = project.command(&["run", "pipelines/p.yaml"]);
            let output = command.env("FLOW_FAILPOINTS", &what).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            if action.starts_with("kill") {
                assert_eq!(
                    output.status.signal(),
                    Some(9),
                    "{what} was not reached:\n{said}"
                );
            } else {
                assert!(
                    matches!(output.status.code(), Some(0 | 1)),
                    "{what}:\n{said}"
                );
            }
            project.run();
            let gave = digests(&project);
            if place == "remote.fetched" {
                assert_eq!(gave.len(), undisturbed.len(), "{what}");
            } else {
                assert_eq!(gave, undisturbed, "{what}");
            }
            project.flow(&["cache", "verify"]).success();
            let last = bucket.machine();
            last.write(
                "pipelines/p.yaml",
                std::fs::read(project.path("pipelines/p.yaml")).unwrap(),
            );
            last.run();
            assert_eq!(last.ran(), Vec::<String>::new(), "{what}");
            assert_eq!(digests(&last), gave, "{what}");
            last.flow(&["cache", "pull"]).success();
            last.flow(&["cache", "verify"]).success();
        }
    }
}

#[test]
fn the_pipeline_names_the_place() {
    let bucket = Bucket::new();
    let pipeline = |address: &str| {
        format!(
            "cache: {{ remote: \"{address}\" }}\nstages:\n  rows: {{ uses: source, with: {{ path: rows.csv }} }}\n"
        )
    };
    let project = Project::with_pipeline(&pipeline(&bucket.address())).file("rows.csv", "n\n1\n");
    project.run();
    assert_eq!(bucket.objects("entries").len(), 1);
    let set = format!("cache.remote={}/other", bucket.address());
    project
        .flow(&["run", "pipelines/p.yaml", "--set", &set])
        .success();
    assert!(bucket.0.path().join("shared/other/flow-1").is_dir());

    project.write("pipelines/p.yaml", pipeline("s3://key:planted@bucket/x"));
    let refused = project.flow(&["check", "pipelines/p.yaml"]).code(2);
    insta::assert_snapshot!(refused.messages(), @r#"
      × the `remote` of the cache holds a user or a password
       ╭─[pipelines/p.yaml:1:18]
     1 │ cache: { remote: "s3://key:planted@bucket/x" }
       ·                  ───────────────────────────
     2 │ stages:
       ╰────
      help: it would end up in the records of runs: leave it out, and set the variables of the provider (`AWS_…`,
            `GOOGLE_…`, `AZURE_…`)
    "#);
    project.write("pipelines/p.yaml", pipeline("s4://bucket/x"));
    let refused = project.flow(&["check", "pipelines/p.yaml"]).code(2);
    insta::assert_snapshot!(refused.messages(), @r#"
      × a cache cannot be shared by `s4://`
       ╭─[pipelines/p.yaml:1:18]
     1 │ cache: { remote: "s4://bucket/x" }
       ·                  ───────────────
     2 │ stages:
       ╰────
      help: did you mean `s3`? The forms are `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`,
            `file:///folder`
    "#);
    project.write(
        "pipelines/p.yaml",
        "cache: { remot: s3://b }\nstages:\n  rows: { uses: source, with: { path: rows.csv } }\n",
    );
    let refused = project.flow(&["check", "pipelines/p.yaml"]).code(2);
    insta::assert_snapshot!(refused.messages(), @r"
      × unknown key `remot` in `cache`
       ╭─[pipelines/p.yaml:1:10]
     1 │ cache: { remot: s3://b }
       ·          ──┬──
       ·            ╰── did you mean `remote`?
     2 │ stages:
       ╰────
      help: the keys here are `path`, `remote`
    ");
    let project = project.variable("FLOW_CACHE_REMOTE", "/mnt/shared");
    let refused = project.flow(&["cache", "push"]).code(2);
    insta::assert_snapshot!(refused.messages(), @r"
    error: `/mnt/shared` is no address of a shared cache
      help: write it like `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`, `file:///folder`
    ");
}
