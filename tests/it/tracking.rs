//! Tracking against a server that fails in every way: each row arrives exactly once, and the run never waits.

use std::path::Path;
use std::time::Duration;

use flow::digest::Digest;
use flow::engine::{Event, EventKind, Level, NodeStatus, Sink as _};
use flow::graph::Fingerprint;
use flow::tracking::{
    ApiKey, Ending, Mode, NewTracking, Pace, Report, Settings, Tracker, base_url, folder_of,
    progress, sync,
};
use serde_json::{Map, Value, json};

use crate::support::{Fault, KEY, TrackingServer};

const QUICK: Pace = Pace {
    interval: Duration::from_millis(5),
    first_retry: Duration::from_millis(5),
    last_retry: Duration::from_millis(20),
    patience: Duration::from_secs(60),
};

fn settings(url: &str) -> Settings {
    Settings {
        mode: Mode::Online,
        base_url: base_url(url, "test").unwrap(),
        key: Some(ApiKey::new(KEY)),
        entity: None,
        project: "qa".into(),
        name: Some("first try".into()),
        group: None,
        job_type: None,
    }
}

fn start(settings: &Settings, runs: &Path, id: &str, pace: Pace) -> Tracker {
    let new = NewTracking {
        settings,
        runs,
        id,
        request: Digest::of("the same every time"),
        config: Map::from_iter([("seed".to_owned(), json!(7))]),
        nodes: &[("fit".to_owned(), "train".to_owned())],
        arguments: &[],
        describe: |event| match event {
            EventKind::Log { message, .. } => Some(message.clone()),
            _ => None,
        },
        pace,
    };
    let tracker = Tracker::start(&new).unwrap();
    tracker.event(&Event::now(EventKind::NodeStarted {
        node: "fit".into(),
        op: "train".into(),
        fingerprint: Some(Fingerprint(Digest::of("fit"))),
        reasons: Vec::new(),
    }));
    tracker
}

fn loss(tracker: &Tracker, step: u64, value: f64) {
    tracker.event(&Event::now(EventKind::Metric {
        node: "fit".into(),
        step,
        values: [("train/loss".to_owned(), value)].into(),
    }));
}

/// The steps of the rows that arrived, in order.
fn steps(server: &TrackingServer) -> Vec<u64> {
    let rows = server.only_run().rows();
    for (place, row) in rows.iter().enumerate() {
        assert_eq!(row["_step"], place);
    }
    rows.iter()
        .filter_map(|row| row["train/step"].as_u64())
        .collect()
}

#[track_caller]
fn is_done(report: &Report) {
    assert_eq!(report.ending, Some(Ending::Done), "{report:?}");
    assert_eq!(report.acknowledged, report.rows, "{report:?}");
    assert_eq!(report.problem, None);
}

/// Sends what is left, after whatever went wrong was mended.
fn send_the_rest(server: &TrackingServer, runs: &Path, id: &str) {
    let (folder, url) = (
        folder_of(&runs.join(id)),
        base_url(&server.url(), "test").unwrap(),
    );
    assert!(progress(&folder, &url).unwrap().is_pending);
    sync(&folder, &url, &ApiKey::new(KEY), QUICK).unwrap();
    assert!(!progress(&folder, &url).unwrap().is_pending);
}

#[test]
fn a_run_arrives_whole() {
    let (server, runs) = (TrackingServer::start(), tempfile::tempdir().unwrap());
    let settings = settings(&server.url());
    let tracker = start(&settings, runs.path(), "r1", QUICK);
    loss(&tracker, 1, 0.5);
    loss(&tracker, 2, f64::NAN);
    loss(&tracker, 3, f64::NEG_INFINITY);
    tracker.event(&Event::now(EventKind::Log {
        node: None,
        level: Level::Info,
        message: "one\ntwo".into(),
    }));
    tracker.event(&Event::now(EventKind::NodeFinished {
        node: "fit".into(),
        op: "train".into(),
        status: NodeStatus::Ran,
        seconds: 2.0,
        fingerprint: Some(Fingerprint(Digest::of("fit"))),
        outputs: Default::default(),
        metrics: [("best_step".to_owned(), 2.0)].into(),
        error: None,
    }));
    let report = runs.path().join("report.html");
    std::fs::write(&report, "<p>report").unwrap();
    tracker.add_file("report.html", &report).unwrap();
    let report = tracker.finish(7);
    is_done(&report);
    assert_eq!(
        report.page,
        Some(format!("{}/owner/qa/runs/r1", server.url()))
    );

    let run = server.only_run();
    assert_eq!(
        (run.project.as_str(), run.display_name.as_str()),
        ("qa", "first try")
    );
    assert_eq!(run.exit_code, Some(7));
    let losses: Vec<_> = run
        .rows()
        .iter()
        .map(|row| row["train/loss"].clone())
        .collect();
    assert_eq!(
        losses,
        [json!(0.5), json!("NaN"), json!("-Infinity"), Value::Null]
    );
    assert_eq!(run.rows()[3]["fit/best_step"], 2);
    let summary = run.summary();
    assert_eq!(summary["train/loss"], "-Infinity");
    assert_eq!(
        (&summary["train/step"], &summary["_step"]),
        (&json!(3), &json!(3))
    );
    assert!(summary["_wandb"]["runtime"].is_u64());
    assert_eq!(run.config["seed"]["value"], 7);
    let own = &run.config["_wandb"]["value"];
    assert_eq!(
        own["m"][1],
        json!({ "1": "train/loss", "5": 1, "6": [1, 3], "7": [] })
    );
    assert!(own["t"].is_object());
    let fingerprint = &run.config["fingerprints"]["value"]["fit"];
    assert_eq!(*fingerprint, json!(Digest::of("fit")));
    let console: Vec<_> = run
        .console
        .iter()
        .map(|line| line.rsplit(' ').next().unwrap())
        .collect();
    assert_eq!(console, ["one", "two"]);
    let system: Value = serde_json::from_str(&run.events[0]).unwrap();
    assert!(system["system.memory_percent"].is_number() && system["_wandb"] == true);
    assert_eq!(run.files["report.html"], b"<p>report");
    assert!(run.uploaded.contains(&"wandb-metadata.json".to_owned()));
}

#[test]
fn each_row_arrives_once_whatever_happens_to_requests() {
    let (server, runs) = (TrackingServer::start(), tempfile::tempdir().unwrap());
    server.faults(
        "UpsertBucket",
        [
            Fault::Status(502),
            Fault::Status(409),
            Fault::CutAfter,
            Fault::CutBefore,
        ],
    );
    server.faults(
        "file_stream",
        [
            Fault::Status(500),
            Fault::CutAfter,
            Fault::CutAfter,
            Fault::CutBefore,
            Fault::Later("0"),
            Fault::Later("Tue, 24 Nov 2020 08:00:00 GMT"),
            Fault::Status(408),
        ],
    );
    server.faults("CreateRunFiles", [Fault::Status(503), Fault::CutBefore]);
    server.faults("PUT", [Fault::Status(500), Fault::CutAfter]);
    let settings = settings(&server.url());
    let tracker = start(&settings, runs.path(), "r1", QUICK);
    for step in 1..=500 {
        loss(&tracker, step, 1.0 / step as f64);
    }
    // Part of it is there before the rest is made.
    server.wait(|state| state.runs.values().any(|run| !run.history.is_empty()));
    server.faults("file_stream", [Fault::CutAfter, Fault::Status(503)]);
    for step in 501..=1000 {
        loss(&tracker, step, 1.0 / step as f64);
    }
    is_done(&tracker.finish(0));
    assert_eq!(steps(&server), (1..=1000).collect::<Vec<_>>());
    assert_eq!(server.only_run().exit_code, Some(0));
}

#[test]
fn a_server_that_is_not_there_does_not_stop_a_run() {
    // Bound and closed at once: nobody listens there.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", nobody.local_addr().unwrap());
    drop(nobody);
    let runs = tempfile::tempdir().unwrap();
    let settings = settings(&url);
    let tracker = start(&settings, runs.path(), "r1", QUICK);
    (1..=10).for_each(|step| loss(&tracker, step, 1.0));
    let report = tracker.finish(0);
    assert!(
        matches!(&report.ending, Some(Ending::Later(why)) if why.contains("cannot be reached")),
        "{report:?}"
    );
    assert_eq!(
        (report.rows, report.acknowledged, report.page),
        (10, 0, None)
    );
    drop(tracker);
    let server = TrackingServer::start();
    send_the_rest(&server, runs.path(), "r1");
    assert_eq!(steps(&server), (1..=10).collect::<Vec<_>>());
    assert_eq!(server.only_run().exit_code, Some(0));
}

#[test]
fn a_server_that_hangs_does_not_keep_a_run_waiting() {
    for fault in [Fault::Hang, Fault::HangAfter] {
        let (server, runs) = (TrackingServer::start(), tempfile::tempdir().unwrap());
        server.faults("file_stream", [fault]);
        let settings = settings(&server.url());
        let patience = Duration::from_millis(50);
        let tracker = start(&settings, runs.path(), "r1", Pace { patience, ..QUICK });
        loss(&tracker, 1, 1.0);
        server.wait(|state| state.hanging == 1);
        // If a row waited for the server, this would never end.
        (2..=100).for_each(|step| loss(&tracker, step, 1.0));
        let report = tracker.finish(1);
        assert!(
            matches!(&report.ending, Some(Ending::Later(why)) if why.contains("does not answer")),
            "{report:?}"
        );
        drop(tracker);
        // Another process sends the rest; this one's thread hangs on.
        send_the_rest(&server, runs.path(), "r1");
        assert_eq!(steps(&server), (1..=100).collect::<Vec<_>>());
        assert_eq!(server.only_run().exit_code, Some(1));
        server.go_on();
    }
}

#[test]
fn a_refusal_is_final_until_somebody_syncs() {
    for (kind, fault, said) in [
        ("UpsertBucket", Fault::GraphqlError, "project is read-only"),
        ("UpsertBucket", Fault::Status(401), "answers 401"),
        ("file_stream", Fault::Status(404), "answers 404"),
        ("file_stream", Fault::Status(302), "answers 302"),
    ] {
        let (server, runs) = (TrackingServer::start(), tempfile::tempdir().unwrap());
        server.faults(kind, [fault]);
        let settings = settings(&server.url());
        let tracker = start(&settings, runs.path(), "r1", QUICK);
        (1..=10).for_each(|step| loss(&tracker, step, 1.0));
        let report = tracker.finish(0);
        assert!(
            matches!(&report.ending, Some(Ending::Refused(why)) if why.contains(said)),
            "{report:?}"
        );
        let kinds = server
            .state()
            .requests
            .iter()
            .filter(|request| *request == kind)
            .count();
        assert_eq!(kinds, 1, "a refused request was sent again");
        drop(tracker);
        send_the_rest(&server, runs.path(), "r1");
        assert_eq!(steps(&server), (1..=10).collect::<Vec<_>>());
    }
}

#[test]
fn a_file_nobody_wants_is_left_out_and_nothing_else() {
    let (server, runs) = (TrackingServer::start(), tempfile::tempdir().unwrap());
    server.faults("CreateRunFiles", [Fault::GraphqlError]);
    let settings = settings(&server.url());
    let tracker = start(&settings, runs.path(), "r1", QUICK);
    loss(&tracker, 1, 1.0);
    server.wait(|state| {
        state
            .requests
            .iter()
            .any(|request| request == "CreateRunFiles")
    });
    server.faults("PUT", [Fault::Status(403)]);
    let file = runs.path().join("x");
    std::fs::write(&file, "x").unwrap();
    tracker.add_file("x", &file).unwrap();
    let report = tracker.finish(0);
    is_done(&report);
    assert_eq!(report.left_out.len(), 2, "{report:?}");
    assert_eq!(steps(&server), [1]);
    drop(tracker);
    send_the_rest(&server, runs.path(), "r1");
    let run = server.only_run();
    assert_eq!(
        run.files.keys().collect::<Vec<_>>(),
        ["wandb-metadata.json", "x"]
    );
}

#[test]
fn requests_become_smaller_where_the_server_wants_them_so() {
    let (server, runs) = (TrackingServer::start(), tempfile::tempdir().unwrap());
    server.faults("file_stream", [Fault::Limit(2000)]);
    let settings = settings(&server.url());
    let tracker = start(&settings, runs.path(), "r1", QUICK);
    (1..=200).for_each(|step| loss(&tracker, step, 1.0));
    is_done(&tracker.finish(0));
    assert_eq!(steps(&server), (1..=200).collect::<Vec<_>>());
}

#[test]
fn a_later_run_goes_on_where_one_was_killed() {
    let (server, runs) = (TrackingServer::start(), tempfile::tempdir().unwrap());
    let settings = settings(&server.url());
    // The answer to the rows is lost, and the process dies before it tries again.
    let slow = Pace {
        first_retry: Duration::from_secs(3600),
        last_retry: Duration::from_secs(3600),
        ..QUICK
    };
    server.faults("file_stream", [Fault::CutAfter]);
    let tracker = start(&settings, runs.path(), "r1", slow);
    (1..=20).for_each(|step| loss(&tracker, step, 1.0));
    server.wait(|state| state.runs.values().any(|run| !run.history.is_empty()));
    drop(tracker);

    // It asks for the same, so it goes on; the trainer had saved step 15.
    let tracker = start(&settings, runs.path(), "r2", QUICK);
    assert_eq!(tracker.continues(), Some("r1"));
    (16..=30).for_each(|step| loss(&tracker, step, 1.0));
    is_done(&tracker.finish(130));
    assert_eq!(steps(&server), (1..=30).collect::<Vec<_>>());
    assert_eq!(server.only_run().exit_code, Some(130));
    drop(tracker);

    // Interrupted is not finished.
    let tracker = start(&settings, runs.path(), "r3", QUICK);
    assert_eq!(tracker.continues(), Some("r1"));
    loss(&tracker, 31, 1.0);
    is_done(&tracker.finish(0));
    assert_eq!(steps(&server), (1..=31).collect::<Vec<_>>());
    let runtimes: Vec<_> = server
        .only_run()
        .rows()
        .iter()
        .map(|row| row["_runtime"].as_f64())
        .collect();
    assert!(runtimes.is_sorted(), "{runtimes:?}");
    drop(tracker);

    // Finished is.
    let tracker = start(&settings, runs.path(), "r4", QUICK);
    assert_eq!(tracker.continues(), None);
    loss(&tracker, 1, 1.0);
    is_done(&tracker.finish(0));
    assert_eq!(server.state().runs["r4"].history.len(), 1);
}

#[test]
fn a_run_that_was_deleted_is_sent_again_whole() {
    let (server, runs) = (TrackingServer::start(), tempfile::tempdir().unwrap());
    let settings = settings(&server.url());
    let tracker = start(&settings, runs.path(), "r1", QUICK);
    loss(&tracker, 1, 1.0);
    is_done(&tracker.finish(1));
    drop(tracker);
    server.state().runs.clear();
    let tracker = start(&settings, runs.path(), "r2", QUICK);
    loss(&tracker, 2, 1.0);
    is_done(&tracker.finish(0));
    assert_eq!(steps(&server), [1, 2]);
    assert!(server.only_run().files.contains_key("wandb-metadata.json"));
}
