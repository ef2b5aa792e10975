//! Pipelines with a matrix: every variant is what the pipeline would be with its values set, and what is the same is one node.

use super::*;
use crate::graph::base_name;

fn request(matrix: &[&str], set: &[&str], profile: Option<&str>) -> Request {
    let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    Request {
        profile: profile.map(str::to_owned),
        set: owned(set),
        matrix: owned(matrix),
        ..Request::default()
    }
}

/// Everything about a node that counts, by the name it has without a matrix.
fn described(node: &Node) -> String {
    let inputs: Vec<_> = node
        .inputs
        .iter()
        .map(|input| (&input.port, base_name(&input.node), &input.output))
        .collect();
    let files: Vec<_> = node.files.values().map(|file| file.digest).collect();
    format!(
        "{} {} {:?} {} {files:?} {:?} {inputs:?} {:?}",
        node.base(),
        node.op,
        node.params,
        node.seed,
        node.models,
        node.resources
    )
}

/// Compares each variant with the pipeline that has its values set.
fn assert_variants_are_what_set_makes(project: &Project, matrix: &[&str]) -> Graph {
    let graph = project
        .compile(request(matrix, &[], None))
        .unwrap_or_else(|problems| panic!("{}", problems.render(false, 200)));
    for variant in &graph.variants {
        let set: Vec<String> = variant
            .params
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        let set: Vec<&str> = set.iter().map(String::as_str).collect();
        let alone = project.compile(request(&[], &set, None)).unwrap();
        let nodes = |graph: &Graph, wanted: &dyn Fn(&petgraph::graph::NodeIndex) -> bool| {
            let mut all: Vec<String> = graph
                .order
                .iter()
                .filter(|index| wanted(index))
                .map(|&index| described(&graph.dag[index]))
                .collect();
            all.sort();
            all
        };
        assert_eq!(
            nodes(&graph, &|index| variant.nodes.contains(index)),
            nodes(&alone, &|_| true),
            "{}",
            variant.label
        );
        assert_eq!(variant.exports, alone.exports);
        assert_eq!(variant.seed, alone.seed);
    }
    graph
}

fn names(graph: &Graph) -> Vec<&str> {
    let names = graph
        .order
        .iter()
        .map(|&index| graph.dag[index].name.as_str());
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    names
}

#[test]
fn only_what_a_value_touches_is_there_twice() {
    let project = Project::new(&[("pipelines/p.yaml", GOOD), ("other.gguf", "")]);
    let graph = assert_variants_are_what_set_makes(&project, &["clean.with.threshold=0.3,0.5"]);
    assert_eq!(
        names(&graph),
        [
            "clean.judge@threshold=0.3",
            "clean.judge@threshold=0.5",
            "clean.keep@threshold=0.3",
            "clean.keep@threshold=0.5",
            "merged@threshold=0.3",
            "merged@threshold=0.5",
            "questions",
        ]
    );
    // Two axes, of which the first touches everything.
    let two = ["questions.with.limit=1,2", "clean.with.threshold=0.3,0.5"];
    let graph = assert_variants_are_what_set_makes(&project, &two);
    assert_eq!(graph.order.len(), 2 + 3 * 4);
    assert!(graph.node("questions@limit=2").is_some());
    assert!(graph.node("merged@limit=2,threshold=0.5").is_some());
    assert_eq!(graph.select("clean").len(), 8);
    assert_eq!(graph.select("clean.keep").len(), 4);
    assert_eq!(graph.select("clean.keep@limit=1,threshold=0.3").len(), 1);
    // Wiring varies too.
    let wired =
        assert_variants_are_what_set_makes(&project, &["merged.inputs.a=questions,clean.kept"]);
    assert_eq!(wired.order.len(), 5);
}

#[test]
fn seeds_and_models_touch_only_nodes_that_use_them() {
    let project = Project::new(&[("pipelines/p.yaml", GOOD), ("other.gguf", "")]);
    let graph = assert_variants_are_what_set_makes(&project, &["seed=1,2,3"]);
    // `rows` and `merge` have no seed of their own, but `merge` reads what differs.
    assert_eq!(graph.order.len(), 1 + 3 * 3);
    assert_eq!(graph.variants[2].seed, 3);
    let graph =
        assert_variants_are_what_set_makes(&project, &["models.base.path=model.gguf,other.gguf"]);
    assert_eq!(
        names(&graph),
        [
            "clean.judge@path=model.gguf",
            "clean.judge@path=other.gguf",
            "clean.keep@path=model.gguf",
            "clean.keep@path=other.gguf",
            "merged@path=model.gguf",
            "merged@path=other.gguf",
            "questions",
        ]
    );
}

#[test]
fn steps_that_a_param_of_their_stage_does_not_reach_are_shared() {
    let stage = ASK_STAGE
        .replace("outputs:", "  tag: { type: text, default: a }\noutputs:")
        .replace("params:", "params:\n  last: { type: text, default: x }")
        .replace("  tag: { type: text, default: a }\n", "")
        .replace(
            "op: merge, inputs",
            "op: merge, with: { query: $last }, inputs",
        );
    let project = Project::new(&[
        ("pipelines/p.yaml", GOOD),
        ("stages/judge/stage.yaml", &stage),
    ]);
    let graph = assert_variants_are_what_set_makes(&project, &["clean.with.last=x,y,z"]);
    assert_eq!(
        names(&graph),
        [
            "clean.judge",
            "clean.keep@last=x",
            "clean.keep@last=y",
            "clean.keep@last=z",
            "merged@last=x",
            "merged@last=y",
            "merged@last=z",
            "questions",
        ]
    );
}

#[test]
fn lists_of_variants_replace_or_thin_the_product() {
    let labels = |matrix: &str| -> Vec<String> {
        let graph = graph(&format!("{GOOD}matrix:\n{matrix}"));
        graph
            .variants
            .into_iter()
            .map(|variant| variant.label)
            .collect()
    };
    let lists = "  seed: [1, 2]\n  clean: { with: { threshold: [0, 1] } }\n";
    assert_eq!(
        labels(lists),
        [
            "seed=1,threshold=0",
            "seed=1,threshold=1",
            "seed=2,threshold=0",
            "seed=2,threshold=1"
        ]
    );
    let thinned = format!("{lists}  exclude: [{{ seed: 1, clean.with.threshold: 1.0 }}]\n");
    let added =
        format!("{thinned}  include: [{{ seed: 9, clean: {{ with: {{ threshold: 0.5 }} }} }}]\n");
    assert_eq!(
        labels(&added),
        [
            "seed=1,threshold=0",
            "seed=2,threshold=0",
            "seed=2,threshold=1",
            "seed=9,threshold=0.5"
        ]
    );
    // Without lists, the variants are those that are named.
    let named = "  include:\n    - { seed: 1, clean.with.threshold: 0 }\n    - { seed: 2, clean.with.threshold: 1 }\n";
    assert_eq!(labels(named), ["seed=1,threshold=0", "seed=2,threshold=1"]);
    assert_eq!(labels("  include: []\n"), [""; 0]);
}

#[test]
fn a_label_names_the_axes_on_which_the_variants_of_a_node_agree() {
    // Three of four variants are left, of which one has the lower limit.
    let matrix = "matrix: { questions.with.limit: [1, 2], clean.with.threshold: [0, 1], exclude: [{ questions.with.limit: 1, clean.with.threshold: 1 }] }\n";
    let graph = graph(&format!("{GOOD}{matrix}"));
    assert_eq!(
        names(&graph),
        [
            "clean.judge@limit=1,threshold=0",
            "clean.judge@limit=2,threshold=0",
            "clean.judge@limit=2,threshold=1",
            "clean.keep@limit=1,threshold=0",
            "clean.keep@limit=2,threshold=0",
            "clean.keep@limit=2,threshold=1",
            "merged@limit=1,threshold=0",
            "merged@limit=2,threshold=0",
            "merged@limit=2,threshold=1",
            "questions@limit=1,threshold=0",
            "questions@limit=2",
        ]
    );
}

#[test]
fn later_layers_win() {
    let text = format!(
        "{GOOD}  wide: {{ matrix: {{ seed: [1, 2, 3] }} }}\n  fixed: {{ questions.with.limit: 9 }}\n  off: {{ matrix: null }}\nmatrix: {{ seed: [1, 2], questions.with.limit: [5, 6] }}\n"
    );
    let project = Project::new(&[("pipelines/p.yaml", &text)]);
    let count = |matrix: &[&str], set: &[&str], profile: Option<&str>| {
        let graph = project.compile(request(matrix, set, profile)).unwrap();
        graph.variants.len()
    };
    assert_eq!(count(&[], &[], None), 4);
    assert_eq!(count(&[], &[], Some("wide")), 6);
    assert_eq!(count(&[], &[], Some("fixed")), 2);
    assert_eq!(count(&[], &[], Some("off")), 0);
    assert_eq!(count(&["questions.with.limit=7"], &[], Some("fixed")), 2);
    assert_eq!(
        count(&["seed=[4, 5, 6]"], &["questions.with.limit=7"], None),
        3
    );
    assert_eq!(count(&[], &["seed=4", "questions.with.limit=7"], None), 0);
    let path = project.0.path().join("pipelines/p.yaml");
    let request = Request {
        path,
        ..request(&[], &["seed=4"], Some("fixed"))
    };
    assert_eq!(
        load(&request, &|_| Some("7".into())).unwrap().remarks,
        [
            "matrix: the profile `fixed` sets `questions.with.limit`, so it does not vary",
            "matrix: `--set` sets `seed`, so it does not vary",
        ]
    );
}
