//! What Slurm's words for the state of a job mean for its node (squeue(1), "JOB STATE CODES" and "JOB REASON CODES").

use crate::jobs::Standing;

/// What is to be thought of a job in `state` that has left no report. `reason` is why it does not run.
pub(super) fn standing(state: &str, reason: &str, name: &str) -> Standing {
    let ended = |what: &str, help: &str| Standing::Ended {
        what: format!("{name} {what}"),
        help: help.to_owned(),
    };
    match state {
        "PENDING" => match hopeless(reason) {
            Some(help) => ended(&format!("waits in vain: {reason}"), help),
            None => Standing::Alive {
                waiting: Some(match reason {
                    "" | "None" => "waits".to_owned(),
                    reason => format!("waits: {reason}"),
                }),
            },
        },
        "TIMEOUT" => ended(
            "came to its time limit",
            "run again to go on from its last progress; `resources: { time: … }` of the stage gives it more",
        ),
        "DEADLINE" => ended(
            "came to its deadline",
            "run again to go on from its last progress",
        ),
        "OUT_OF_MEMORY" => ended(
            "ran out of memory",
            "give it more with `resources: { memory: … }` of the stage",
        ),
        "CANCELLED" => ended(
            "was cancelled by somebody else",
            "run again to go on from its last progress",
        ),
        "NODE_FAIL" | "BOOT_FAIL" => Standing::Lost {
            what: format!("the machine of {name} failed"),
        },
        "PREEMPTED" => Standing::Lost {
            what: format!("{name} had to make room for another"),
        },
        "FAILED" => ended(
            "ended without a result",
            "check that `flow` and its libraries are there on the job's machine",
        ),
        "COMPLETED" => ended(
            "ended without a result that is seen here",
            "the cache has to be on a file system that all machines share; check that the job's machine sees the same folder",
        ),
        "REVOKED" => ended("was revoked", "run again"),
        // RUNNING, COMPLETING, CONFIGURING, REQUEUED, SUSPENDED, SIGNALING, STAGE_OUT …: it goes on.
        _ => Standing::Alive { waiting: None },
    }
}

/// What is said of a job that Slurm has in `state`, though its files have not changed for long.
pub(super) fn silent(state: &str, id: &str) -> String {
    format!(
        "is {state}, says Slurm, but shows no sign of life; if that stays so, `scancel {id}` and run again to go on from its last progress"
    )
}

/// What to do about a reason for waiting that does not go away by waiting.
fn hopeless(reason: &str) -> Option<&'static str> {
    const PARTITION: &str = "ask for less (`resources:` of the stage, `executor.slurm`), or for another `partition`; `sinfo -l` shows their limits";
    const NAMES: &str = "check `account`, `qos` and `partition` under `executor.slurm`; `sacctmgr show associations user=$USER` lists yours";
    const HELD: &str = "it is held; `scontrol release ID` lets it go, and running again finds it";
    Some(match reason {
        "PartitionNodeLimit"
        | "PartitionTimeLimit"
        | "BadConstraints"
        | "InvalidBBScriptorDirective" => PARTITION,
        "InvalidAccount"
        | "InvalidQOS"
        | "AccountNotAllowed"
        | "QOSNotAllowed"
        | "PartitionNotAllowed" => NAMES,
        "launch_failed_requeued_held" | "JobHoldMaxRequeue" | "JobHeldAdmin" => HELD,
        // A single job exceeds what the user may ever have.
        reason
            if reason.contains("MaxCpuPerJobLimit")
                || reason.contains("MaxMemoryPerJob")
                || reason.contains("MaxMemPerJob")
                || reason.contains("MaxGRESPerJob")
                || reason.contains("MaxWallDurationPerJobLimit")
                || reason.contains("MaxNodePerJobLimit")
                || reason.contains("MaxMemPerLimit") =>
        {
            PARTITION
        }
        "DependencyNeverSatisfied" => HELD,
        _ => return None,
    })
}

/// What to do about an answer of `sbatch` that it takes no such job.
pub(super) fn refused(answer: &str) -> &'static str {
    let answer = answer.to_lowercase();
    let has = |word: &str| answer.contains(word);
    if has("array") {
        "ask for fewer `shards`; `scontrol show config | grep MaxArraySize` shows how many tasks an array may have"
    } else if has("partition") {
        "check `partition` of the stage's `resources:` and of `executor.slurm`; `sinfo` lists those there are"
    } else if has("account") || has("qos") || has("association") {
        "check `account` and `qos` under `executor.slurm`; `sacctmgr show associations user=$USER` lists yours"
    } else if has("time limit") {
        "ask for less `time`; `sinfo -l` shows the limits of partitions"
    } else if has("node configuration") || has("memory") || has("cpu count") {
        "no machine has so much: ask for less `memory`, `cpus` or `gpus`; `sinfo -N -l` shows what machines have"
    } else if has("gres") || has("gpu") {
        "no machine has such GPUs: check `gpus` and the `options`; `sinfo -o '%N %G'` shows what machines have"
    } else if has("unrecognized option") || has("invalid") {
        "check the `options` under `executor.slurm`; `man sbatch` lists them"
    } else {
        "check `executor.slurm` and the stage's `resources:`"
    }
}

/// Whether another try may well succeed, as the one that was asked was busy.
pub(super) fn is_passing(answer: &str) -> bool {
    let answer = answer.to_lowercase();
    [
        "timed out",
        "temporarily",
        "unable to contact",
        "connection",
        "communication",
        "try again",
        "limit on number of jobs",
        "job submit limit",
    ]
    .iter()
    .any(|word| answer.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(state: &str, reason: &str) -> Standing {
        standing(state, reason, "Slurm job 7")
    }

    #[test]
    fn states_mean_something_for_the_node() {
        assert_eq!(of("RUNNING", "None"), Standing::Alive { waiting: None });
        assert_eq!(of("COMPLETING", "None"), Standing::Alive { waiting: None });
        let waits = |waiting: &str| Standing::Alive {
            waiting: Some(waiting.to_owned()),
        };
        assert_eq!(of("PENDING", "None"), waits("waits"));
        assert_eq!(of("PENDING", "Resources"), waits("waits: Resources"));
        assert_eq!(
            of("PENDING", "ReqNodeNotAvail, UnavailableNodes:n1"),
            waits("waits: ReqNodeNotAvail, UnavailableNodes:n1")
        );
        for lost in ["NODE_FAIL", "BOOT_FAIL", "PREEMPTED"] {
            assert!(matches!(of(lost, "None"), Standing::Lost { .. }), "{lost}");
        }
        for (state, reason, says) in [
            ("TIMEOUT", "TimeLimit", "came to its time limit"),
            ("OUT_OF_MEMORY", "None", "ran out of memory"),
            ("CANCELLED", "None", "was cancelled by somebody else"),
            ("FAILED", "NonZeroExitCode", "ended without a result"),
            (
                "COMPLETED",
                "None",
                "ended without a result that is seen here",
            ),
            (
                "PENDING",
                "PartitionTimeLimit",
                "waits in vain: PartitionTimeLimit",
            ),
            (
                "PENDING",
                "QOSMaxMemoryPerJob",
                "waits in vain: QOSMaxMemoryPerJob",
            ),
            (
                "PENDING",
                "launch_failed_requeued_held",
                "waits in vain: launch_failed_requeued_held",
            ),
        ] {
            let Standing::Ended { what, help } = of(state, reason) else {
                panic!("{state} {reason} is no end");
            };
            assert_eq!(what, format!("Slurm job 7 {says}"));
            assert!(!help.is_empty());
        }
    }

    #[test]
    fn refusals_name_the_key() {
        for (answer, key) in [
            (
                "Batch job submission failed: Invalid partition name specified",
                "`partition`",
            ),
            (
                "Batch job submission failed: Invalid account or account/partition combination specified",
                "`partition`",
            ),
            (
                "Batch job submission failed: Invalid qos specification",
                "`qos`",
            ),
            (
                "Batch job submission failed: Requested node configuration is not available",
                "`memory`",
            ),
            (
                "Batch job submission failed: Invalid generic resource (gres) specification",
                "`gpus`",
            ),
            (
                "Batch job submission failed: Invalid job array specification",
                "`shards`",
            ),
            ("unrecognized option '--constrain=x'", "`options`"),
            ("something new", "`executor.slurm`"),
        ] {
            assert!(refused(answer).contains(key), "{answer}");
        }
        assert!(is_passing(
            "Batch job submission failed: Socket timed out on send/recv operation"
        ));
        assert!(!is_passing(
            "Batch job submission failed: Invalid partition name specified"
        ));
    }
}
