//! SQL over what a run gave.

use crate::support::Project;

#[test]
fn queries_reach_every_table() {
    let project = Project::medical();
    project.run();
    let listed = project.flow(&["data", "latest"]).success().results();
    assert!(
        listed.lines().any(|line| line.starts_with("split.train ")),
        "{listed}"
    );
    assert!(
        listed
            .lines()
            .any(|line| line.starts_with("train ") && line.contains("files")),
        "{listed}"
    );
    let sums = project.query(
        "select (select count(*) from split.train) + (select count(*) from split.validation) as parts,
            (select count(*) from clean) as whole, (select count(*) from clean.keep) as inner_name,
            (select count(*) from \"evaluate\".\"base_score.rows\") as third",
    );
    assert_eq!(sums[0]["parts"], sums[0]["whole"]);
    assert_eq!(sums[0]["inner_name"], sums[0]["whole"]);
    assert!(sums[0]["third"].as_u64().unwrap() > 0);
    project
        .flow(&[
            "data",
            "latest",
            "--sql",
            "select id from clean order by id",
            "--limit",
            "3",
            "--export",
            "ids.parquet",
        ])
        .success();
    assert!(project.path("ids.parquet").is_file());
    project
        .flow(&["data", "latest", "--export", "x.csv"])
        .code(2);
    // Queries only look.
    project
        .flow(&["data", "latest", "--sql", "drop table clean"])
        .code(2);
    assert!(
        !project
            .query("select 1 as one from clean limit 1")
            .is_empty()
    );
}
