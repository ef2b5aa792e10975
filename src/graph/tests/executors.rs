//! `executor:` and `resources:`: what is read, and what is told of mistakes.

use super::*;
use crate::config::{JobSpec, load};

#[test]
fn jobs_get_what_stage_and_executor_ask_for() {
    let text = "\
executor:
  use: slurm
  slurm: { partition: long, account: lab, memory: 16G, time: 2h, cpus: 4, max_jobs: 20, options: { constraint: a100, exclusive: true, nice: 5 } }
stages:
  a: { uses: rows, resources: { cpus: all, gpus: 1, time: 30, partition: short } }
profiles:
  big: { a.resources.memory: 64G, executor.slurm.qos: high }
";
    let project = Project::new(&[("pipelines/p.yaml", text)]);
    let request = Request {
        path: project.0.path().join("pipelines/p.yaml"),
        profile: Some("big".to_owned()),
        ..Request::default()
    };
    let spec = load(&request, &|_| None).unwrap();
    let executor = spec.executor.clone().unwrap();
    assert_eq!(executor.uses.as_deref(), Some("slurm"));
    let slurm = &executor.slurm;
    assert_eq!(
        (slurm.account.as_deref(), slurm.qos.as_deref()),
        (Some("lab"), Some("high"))
    );
    assert_eq!(slurm.max_jobs, Some(20));
    let options: Vec<_> = slurm
        .options
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_deref()))
        .collect();
    assert_eq!(
        options,
        [
            ("constraint", Some("a100")),
            ("exclusive", None),
            ("nice", Some("5"))
        ]
    );
    assert!(spec.problems.is_empty(), "{:?}", spec.problems);
    let job = spec.stages[0].job.or(&slurm.job);
    let expected = JobSpec {
        // All slots of the machine that runs flow say nothing of a job.
        cpus: Some(4),
        gpus: Some(1),
        memory: Some(64 << 10),
        time: Some(30),
        partition: Some("short".to_owned()),
    };
    assert_eq!(job, expected);
}

#[test]
fn mistakes_in_jobs() {
    insta::assert_snapshot!(messages("\
executor:
  use: slrum
  slurm: { partiton: long, time: soon, memory: 16, cpus: 0, options: { mem: 3, requeue: true, c: 1, gres: [gpu] } }
stages:
  a: { uses: rows, resources: { gups: 1, cpus: -1, time: 1:2:3:4 } }
  executor: { uses: rows }
"), @r"
     × there is no executor `slrum`
      ╭─[pipelines/p.yaml:2:8]
    1 │ executor:
    2 │   use: slrum
      ·        ──┬──
      ·          ╰── did you mean `slurm`?
    3 │   slurm: { partiton: long, time: soon, memory: 16, cpus: 0, options: { mem: 3, requeue: true, c: 1, gres: [gpu] } }
      ╰────
     help: the executors are `local`, `slurm`

     × unknown key `partiton` in `slurm`
      ╭─[pipelines/p.yaml:3:12]
    2 │   use: slrum
    3 │   slurm: { partiton: long, time: soon, memory: 16, cpus: 0, options: { mem: 3, requeue: true, c: 1, gres: [gpu] } }
      ·            ────┬───
      ·                ╰── did you mean `partition`?
    4 │ stages:
      ╰────
     help: the keys here are `memory`, `time`, `partition`, `cpus`, `gpus`, `account`, `qos`, `max_jobs`, `options`

     × `time: soon` is not a duration
      ╭─[pipelines/p.yaml:3:34]
    2 │   use: slrum
    3 │   slurm: { partiton: long, time: soon, memory: 16, cpus: 0, options: { mem: 3, requeue: true, c: 1, gres: [gpu] } }
      ·                                  ────
    4 │ stages:
      ╰────
     help: for example `90m`, `2h`, `1d`, `02:30:00` or `1-12:00:00`; a number alone is minutes

     × `memory: 16` is not a size
      ╭─[pipelines/p.yaml:3:48]
    2 │   use: slrum
    3 │   slurm: { partiton: long, time: soon, memory: 16, cpus: 0, options: { mem: 3, requeue: true, c: 1, gres: [gpu] } }
      ·                                                ──
    4 │ stages:
      ╰────
     help: for example `16G` or `512M`

     × `cpus` takes a whole number from 1 to 1024, this is the integer `0`
      ╭─[pipelines/p.yaml:3:58]
    2 │   use: slrum
    3 │   slurm: { partiton: long, time: soon, memory: 16, cpus: 0, options: { mem: 3, requeue: true, c: 1, gres: [gpu] } }
      ·                                                          ─
    4 │ stages:
      ╰────

     × `mem` cannot be among the `options`
      ╭─[pipelines/p.yaml:3:72]
    2 │   use: slrum
    3 │   slurm: { partiton: long, time: soon, memory: 16, cpus: 0, options: { mem: 3, requeue: true, c: 1, gres: [gpu] } }
      ·                                                                        ───
    4 │ stages:
      ╰────
     help: it has a key of its own: `memory`

     × `requeue` cannot be among the `options`
      ╭─[pipelines/p.yaml:3:80]
    2 │   use: slrum
    3 │   slurm: { partiton: long, time: soon, memory: 16, cpus: 0, options: { mem: 3, requeue: true, c: 1, gres: [gpu] } }
      ·                                                                                ───────
    4 │ stages:
      ╰────
     help: flow sets it itself

     × `c` is no long option of `sbatch`
      ╭─[pipelines/p.yaml:3:95]
    2 │   use: slrum
    3 │   slurm: { partiton: long, time: soon, memory: 16, cpus: 0, options: { mem: 3, requeue: true, c: 1, gres: [gpu] } }
      ·                                                                                               ─
    4 │ stages:
      ╰────
     help: write its long name, such as `constraint: a100` or `exclusive: true`

     × `gres` takes a text or a number, this is a list
      ╭─[pipelines/p.yaml:3:107]
    2 │   use: slrum
    3 │   slurm: { partiton: long, time: soon, memory: 16, cpus: 0, options: { mem: 3, requeue: true, c: 1, gres: [gpu] } }
      ·                                                                                                           ─────
    4 │ stages:
      ╰────

     × unknown key `gups` in `resources`
      ╭─[pipelines/p.yaml:5:33]
    4 │ stages:
    5 │   a: { uses: rows, resources: { gups: 1, cpus: -1, time: 1:2:3:4 } }
      ·                                 ──┬─
      ·                                   ╰── did you mean `gpus`?
    6 │   executor: { uses: rows }
      ╰────
     help: the keys here are `cpus`, `cpu`, `gpus`, `gpu`, `memory`, `time`, `partition`

     × `cpus` takes a number of slots from 0 to 1024, or `all`, this is the integer `-1`
      ╭─[pipelines/p.yaml:5:48]
    4 │ stages:
    5 │   a: { uses: rows, resources: { gups: 1, cpus: -1, time: 1:2:3:4 } }
      ·                                                ──
    6 │   executor: { uses: rows }
      ╰────

     × `time: 1:2:3:4` is not a duration
      ╭─[pipelines/p.yaml:5:58]
    4 │ stages:
    5 │   a: { uses: rows, resources: { gups: 1, cpus: -1, time: 1:2:3:4 } }
      ·                                                          ───────
    6 │   executor: { uses: rows }
      ╰────
     help: for example `90m`, `2h`, `1d`, `02:30:00` or `1-12:00:00`; a number alone is minutes

     × `executor` cannot be the name of a stage
      ╭─[pipelines/p.yaml:6:3]
    5 │   a: { uses: rows, resources: { gups: 1, cpus: -1, time: 1:2:3:4 } }
    6 │   executor: { uses: rows }
      ·   ────────
      ╰────
     help: profiles and `--set` use this word for a part of the pipeline; name it otherwise
    ");
}
