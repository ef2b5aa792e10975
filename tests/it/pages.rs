//! Pages in a browser, where there is one.

use crate::support::Project;
#[cfg(feature = "torch")]
use crate::support::{server::Server, tuned::tuned};

/// Opens pages as `scripts/check-pages.py` does; says so where no browser is installed.
#[expect(clippy::print_stdout, reason = "a test that was skipped has to say so")]
fn check(project: &Project, arguments: &[&str]) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/check-pages.py");
    let checked = std::process::Command::new(script)
        .args(arguments)
        .current_dir(project.path("."))
        .output()
        .expect("the script can be started");
    let said = String::from_utf8_lossy(&checked.stderr);
    match checked.status.code() {
        Some(0) => {}
        Some(77) => println!("{said}"),
        _ => panic!("{said}"),
    }
}

#[test]
fn reports_and_comparisons_open_without_a_complaint() {
    let project = Project::medical_twice(&["dedup.with.shift=1"]);
    project
        .flow(&["report", "latest", "-o", "report.html"])
        .success();
    project
        .flow(&["compare", "latest~1", "latest", "--html", "compare.html"])
        .success();
    check(&project, &["report.html", "compare.html"]);
}

#[cfg(feature = "torch")]
#[test]
fn the_chat_page_shows_the_answers_of_both() {
    let project = tuned();
    let server = Server::start(&project, &[]);
    check(&project, &["--ask", "What is case 3?", &server.address]);
}
