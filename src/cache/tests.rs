//! A cache across openings, crashes and damage.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::Map;

use super::*;
use crate::config::ArtifactKind;
use crate::digest::Digest;
use crate::graph::{Fingerprint, Manifest, Node, Resources};
use crate::ops::{Cell, ColumnType, Table};

fn open(folder: &Path) -> Cache {
    try_open(folder).unwrap()
}

fn try_open(folder: &Path) -> Result<Cache, CacheError> {
    Cache::open(
        folder,
        RunLock::acquire(folder, &Holder::new("test"), |_| false)?,
    )
}

fn manifest(seed: u64) -> Manifest {
    let node = Node {
        name: "node".to_owned(),
        stage: "node".to_owned(),
        op: "test".to_owned(),
        op_version: 1,
        params: Map::new(),
        unhashed: Vec::new(),
        files: BTreeMap::new(),
        paths: BTreeMap::new(),
        models: BTreeMap::new(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        seed,
        resources: Resources::default(),
        job: crate::config::JobSpec::default(),
    };
    Manifest::new(&node, BTreeMap::new(), BTreeMap::new(), BTreeMap::new())
}

fn commit(cache: &Cache, seed: u64, output: Artifact) -> Fingerprint {
    let manifest = manifest(seed);
    let new = NewEntry {
        pipeline: "pipeline",
        node: "node",
        op: "test",
        manifest: &manifest,
        outputs: BTreeMap::from([("out".to_owned(), output)]),
        metrics: BTreeMap::from([("score".to_owned(), 0.5)]),
        seconds: 1.0,
    };
    cache.commit(new).unwrap().fingerprint
}

fn numbers(cache: &Cache, from: i64, count: i64) -> Artifact {
    let mut table = Table::new(&[("n", ColumnType::Integer)]);
    table.rows = (from..from + count)
        .map(|number| vec![Cell::from(number)])
        .collect();
    cache.store_table(&table, false).unwrap()
}

fn files(cache: &Cache, text: &str) -> Artifact {
    let folder = cache.partials_path().join("given");
    std::fs::create_dir_all(folder.join("deep")).unwrap();
    std::fs::write(folder.join("deep/file"), text).unwrap();
    std::os::unix::fs::symlink("deep/file", folder.join("link")).unwrap();
    cache.store_files(&folder).unwrap()
}

/// What the disk holds now: what another process would find after this one was killed.
fn killed(folder: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    let status = std::process::Command::new("cp")
        .arg("-a")
        .arg(folder.join("."))
        .arg(copy.path())
        .status()
        .unwrap();
    assert!(status.success());
    copy
}

fn is_hit(cache: &Cache, fingerprint: Fingerprint) -> bool {
    matches!(cache.lookup(fingerprint).unwrap(), Lookup::Hit(_))
}

#[test]
fn results_outlive_the_process_once_flushed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let (table, tree) = (numbers(&cache, 0, 10), files(&cache, "text"));
    let fingerprints = [commit(&cache, 1, table), commit(&cache, 2, tree)];
    assert!(
        fingerprints
            .iter()
            .all(|&fingerprint| is_hit(&cache, fingerprint))
    );
    cache.flush().unwrap();
    for copy in [killed(folder.path()), {
        // Also without the snapshot.
        let copy = killed(folder.path());
        std::fs::remove_file(copy.path().join("index.json")).unwrap();
        copy
    }] {
        let again = open(copy.path());
        assert!(
            fingerprints
                .iter()
                .all(|&fingerprint| is_hit(&again, fingerprint))
        );
        assert_eq!(
            *again.last_manifest("pipeline", "node").unwrap().unwrap(),
            manifest(2)
        );
        assert_eq!(again.entry(fingerprints[0]).unwrap().metrics["score"], 0.5);
    }
}

#[test]
fn a_crash_before_the_commit_leaves_nothing_visible_and_nothing_in_the_way() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let (table, tree) = (numbers(&cache, 0, 10), files(&cache, "text"));
    let copy = killed(folder.path());
    let again = open(copy.path());
    assert_eq!(again.index().entries().count(), 0);
    assert_eq!(
        (numbers(&again, 0, 10), files(&again, "text")),
        (table, tree)
    );
    // A file that was torn by the crash is not taken for the one that is stored now.
    let copy = killed(folder.path());
    let torn = copy
        .path()
        .join("objects")
        .join(files(&cache, "text").digest.to_string())
        .join("deep/file");
    std::fs::remove_file(&torn).unwrap();
    std::fs::write(&torn, "te").unwrap();
    let again = open(copy.path());
    let fingerprint = commit(&again, 1, files(&again, "text"));
    assert!(is_hit(&again, fingerprint));
    assert_eq!(std::fs::read_to_string(torn).unwrap(), "text");
}

#[test]
fn links_may_not_leave_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let refused = |target: &str| {
        let given = cache.partials_path().join("given");
        std::fs::create_dir_all(given.join("deep")).unwrap();
        let _ = std::fs::remove_file(given.join("deep/link"));
        std::os::unix::fs::symlink(target, given.join("deep/link")).unwrap();
        cache.store_files(&given).is_err()
    };
    assert!(refused("/etc/passwd") && refused("../../other") && refused("missing"));
    assert!(!refused("../deep"));
}

#[test]
fn verdicts_are_durable_when_put_returns() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let verdict = |choice| Verdict {
        choice,
        probability: 0.75,
        detail: "{}".to_owned(),
    };
    let keys: Vec<Digest> = (0..100)
        .map(|number: u32| Digest::of(number.to_le_bytes()))
        .collect();
    let verdicts: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(choice, key)| (*key, verdict(choice as i64)))
        .collect();
    cache.verdicts_put(&verdicts[..60]).unwrap();
    cache.verdicts_put(&verdicts[40..80]).unwrap();
    cache.verdicts_put(&[(keys[0], verdict(-1))]).unwrap();
    let copy = killed(folder.path());
    let found = open(copy.path()).verdicts_get(&keys[10..]).unwrap();
    let expected: HashMap<_, _> = verdicts[10..80].iter().cloned().collect();
    assert_eq!(found, expected);
    assert_eq!(
        cache.verdicts_get(&keys[..1]).unwrap()[&keys[0]],
        verdict(0)
    );
    // All are kept, also those that came second.
    assert_eq!(cache.size().unwrap().verdicts, 60 + 40 + 1);
}

#[test]
fn gc_keeps_what_is_named_and_gives_the_rest_back() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let sorted = cache
        .store_query(
            &BTreeMap::new(),
            "select md5(range::varchar) as text from range(50000) order by text desc",
            &[],
        )
        .unwrap();
    let kept = commit(&cache, 1, sorted);
    let dropped: Vec<_> = (2..12)
        .map(|seed| commit(&cache, seed, numbers(&cache, seed as i64 * 100_000, 20_000)))
        .collect();
    let other = commit(&cache, 20, files(&cache, "text"));
    let dearest = commit(&cache, 21, files(&cache, "dear"));
    cache.flush().unwrap();
    let runs = [vec![dearest], vec![kept, dearest], vec![other]];
    let collected = cache.gc(&runs, Some(2_000_000)).unwrap();
    assert_eq!(collected.kept_runs, 3);
    assert_eq!(
        (collected.entries, collected.tables, collected.objects),
        (10, 10, 0)
    );
    assert!(
        is_hit(&cache, kept)
            && is_hit(&cache, other)
            && !dropped
                .iter()
                .any(|&fingerprint| is_hit(&cache, fingerprint))
    );
    assert_eq!(
        cache.verify().unwrap(),
        Verified {
            artifacts: 3,
            damaged: Vec::new()
        }
    );
    // The second run does not fit, and nothing after it is kept in its stead.
    let collected = cache.gc(&runs, Some(100)).unwrap();
    assert_eq!(
        (collected.entries, collected.tables, collected.objects),
        (2, 1, 1)
    );
    // The first is kept whole, whatever it takes.
    let first = cache.gc(&runs, Some(0)).unwrap();
    assert_eq!(
        (first.entries, first.kept_runs, first.kept_bytes),
        (0, 1, 13)
    );
    assert!(collected.bytes > 500_000, "{collected:?}");
    drop(cache);
    let again = open(folder.path());
    assert!(is_hit(&again, dearest) && !is_hit(&again, kept) && !is_hit(&again, other));
    assert_eq!(again.size().unwrap().objects, 1);
}

#[test]
fn verify_finds_and_drops_what_changed() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let (table, tree) = (numbers(&cache, 0, 10), files(&cache, "text"));
    let (one, two, three) = (
        commit(&cache, 1, table.clone()),
        commit(&cache, 2, tree.clone()),
        commit(&cache, 3, numbers(&cache, 5, 5)),
    );
    cache.flush().unwrap();
    cache
        .database
        .connection()
        .unwrap()
        .execute_batch(&format!("delete from t_{} where n = 3", table.digest))
        .unwrap();
    // Same size and time: only the content tells.
    let path = cache.object_path(&tree.digest).join("deep/file");
    let before = std::fs::metadata(&path).unwrap().modified().unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "tent").unwrap();
    std::fs::File::options()
        .append(true)
        .open(&path)
        .unwrap()
        .set_modified(before)
        .unwrap();
    assert!(is_hit(&cache, two));
    let verified = cache.verify().unwrap();
    let mut kinds: Vec<_> = verified.damaged.iter().map(|damage| damage.kind).collect();
    kinds.sort();
    assert_eq!(
        (verified.artifacts, kinds),
        (3, vec![ArtifactKind::Table, ArtifactKind::Files])
    );
    assert!(
        verified
            .damaged
            .iter()
            .all(|damage| damage.nodes == ["node"])
    );
    drop(cache);
    let again = open(folder.path());
    assert!(!is_hit(&again, one) && !is_hit(&again, two) && is_hit(&again, three));
}

#[test]
fn a_damaged_database_is_named_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let cache = open(folder.path());
    let table = numbers(&cache, 0, 100_000);
    commit(&cache, 1, table);
    drop(cache);
    let path = folder.path().join("flow.duckdb");
    let whole = std::fs::read(&path).unwrap();
    for bytes in [
        b"this is no database".to_vec(),
        whole[..whole.len() / 2].to_vec(),
        vec![0; whole.len()],
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = Cache::open_read_only(folder.path()).unwrap_err();
        assert!(
            matches!(&error, CacheError::Damaged { path: named, .. } if *named == path),
            "{error}"
        );
        assert!(error.help().unwrap().contains("makes it anew"));
    }
    let cache = open(folder.path());
    let recovered = cache.recovered().unwrap();
    let aside = folder.path().join("flow.duckdb.damaged");
    assert_eq!(recovered.aside.as_ref(), Some(&aside));
    // The entry gave a table, which was in the database alone.
    assert_eq!((recovered.entries, recovered.verdicts), (0, 0));
    assert_eq!(cache.verify().unwrap().artifacts, 0);
}

#[test]
fn a_newer_layout_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    std::fs::write(folder.path().join("layout"), "7\n").unwrap();
    for error in [
        try_open(folder.path()).unwrap_err(),
        Cache::open_read_only(folder.path()).unwrap_err(),
    ] {
        assert!(
            error
                .to_string()
                .ends_with("has layout 7; this flow knows layouts up to 1"),
            "{error}"
        );
    }
}

#[test]
fn a_reader_sees_what_is_there_and_needs_no_cache() {
    let folder = tempfile::tempdir().unwrap();
    let missing = Cache::open_read_only(&folder.path().join("missing")).unwrap();
    assert!(!is_hit(&missing, Fingerprint(Digest::of("x"))));
    let cache = open(folder.path());
    let table = numbers(&cache, 0, 3);
    let fingerprint = commit(&cache, 1, table.clone());
    drop(cache);
    let reader = Cache::open_read_only(folder.path()).unwrap();
    assert!(is_hit(&reader, fingerprint));
    let inputs = BTreeMap::from([("rows".to_owned(), table)]);
    let rows: Result<Table, crate::ops::OpError> = reader.with_views(&inputs, |connection| {
        Table::query(connection, "select sum(n) from rows")
    });
    assert_eq!(rows.unwrap().rows, [[Cell::Integer(3)]]);
    assert!(
        reader
            .store_table(&Table::new(&[("n", ColumnType::Integer)]), false)
            .is_err()
    );
}
