//! The executor: which nodes become jobs, and their way there and back.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::command::{answer, command};
use super::queue::Queue;
use super::submission::{Submission, Wanted};
use super::tasks::Tasks;
use crate::config::SlurmSpec;
use crate::engine::{Call, Executor, run_here};
use crate::graph::Node;
use crate::jobs::{JobFolder, finish_node, finish_parts, prepare_node, prepare_parts};
use crate::ops::{Context, Item, Op, OpError, Outputs, Parts};

/// Jobs in the queue at a time, where nothing else is said.
const MOST: u32 = 64;

/// Variables that every worker gets, where they are set.
const PASSED: [&str; 19] = [
    "PATH",
    "HOME",
    "USER",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "FLOW_LOG",
    "OMP_NUM_THREADS",
    "RAYON_NUM_THREADS",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "all_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
];

pub type SlurmOptions = SlurmSpec;

/// Runs nodes as jobs of a Slurm cluster.
#[derive(Debug, Clone)]
pub struct Slurm {
    shared: Arc<Shared>,
}

/// What all nodes have to do with.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) options: SlurmOptions,
    pub(super) queue: Queue,
    /// The folder with `flow` and `flow-lm`.
    programs: PathBuf,
    /// Ids of jobs whose nodes are not finished.
    live: Mutex<BTreeSet<String>>,
    complained: Mutex<Option<String>>,
    warn: fn(&str),
}

impl Slurm {
    /// `programs` is the folder with `flow` and `flow-lm`, which all machines see; `warn` tells people of trouble that
    /// passes.
    pub fn new(options: SlurmOptions, programs: PathBuf, warn: fn(&str)) -> Self {
        let shared = Shared {
            options,
            queue: Queue::default(),
            programs,
            live: Mutex::default(),
            complained: Mutex::default(),
            warn,
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Cancels all jobs at once, for a process that ends now.
    pub fn abandon(&self) {
        let ids: Vec<String> = self.shared.live().iter().cloned().collect();
        self.shared.cancel(&ids, &[]);
    }

    fn wanted(&self, op: &dyn Op, context: &Context<'_>) -> Result<Wanted, OpError> {
        let node = context.node;
        let name = if op.needs_language_model(node) {
            "flow-lm"
        } else {
            "flow"
        };
        let program = self.shared.programs.join(name);
        if !program.is_file() {
            return Err(OpError::with_help(
                format!("the job needs `{}`, which is not there", program.display()),
                "build it with the feature `torch` (`make build`)",
            ));
        }
        let mut environment: Vec<String> = PASSED.map(str::to_owned).to_vec();
        environment.extend(op.environment(node));
        Ok(Wanted {
            program,
            spec: node.job.or(&self.shared.options.job),
            environment,
            cancel: context.cancel.clone(),
        })
    }
}

impl Executor for Slurm {
    fn takes(&self, op: &dyn Op, node: &Node) -> bool {
        op.wants_machine(node)
    }

    fn most(&self) -> u32 {
        self.shared.options.max_jobs.unwrap_or(MOST)
    }

    fn run(&self, call: &Call<'_>, context: &mut Context<'_>) -> Result<Outputs, OpError> {
        let wanted = self.wanted(call.op, context)?;
        let count = call.op.parts(context.node);
        if count > 0 {
            context.parts = Some(Arc::new(InParts {
                slurm: self.clone(),
                wanted,
                count,
            }));
            return run_here(context, call.run);
        }
        let prepared = prepare_node(context)?;
        let started = Tasks::start(&self.shared, &prepared, &wanted);
        finish_node(&prepared, started, context)
    }

    fn prepare(&self, _: &dyn Op, context: &mut Context<'_>) -> Result<Option<Outputs>, OpError> {
        let folder = JobFolder::new(context.cache().job_path(context.fingerprint));
        super::here::keep_away(&folder, false)?;
        Ok(None)
    }
}

/// Does items of work as an array of jobs.
struct InParts {
    slurm: Slurm,
    wanted: Wanted,
    count: u32,
}

impl Parts for InParts {
    fn answer(
        &self,
        context: &Context<'_>,
        items: &[Item],
        take: &mut dyn FnMut(&[String]) -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        let prepared = prepare_parts(context, items, self.count)?;
        if prepared.found {
            context.info("goes on with the jobs of an earlier run");
        }
        let started = Tasks::start(&self.slurm.shared, &prepared, &self.wanted);
        finish_parts(&prepared, started, context, take)
    }
}

impl Shared {
    fn live(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, submission: &Submission) {
        self.live().extend(submission.ids());
    }

    pub(super) fn forget(&self, submission: &Submission) {
        let mut live = self.live();
        for id in submission.ids() {
            live.remove(&id);
        }
    }

    /// Tells Slurm to end or signal jobs. One that has ended is what was wanted.
    pub(super) fn cancel(&self, ids: &[String], how: &[&str]) {
        if !ids.is_empty() {
            let mut scancel = command("scancel");
            scancel.arg("--quiet").args(how).args(ids);
            if let Err(trouble) = answer(&mut scancel) {
                tracing::debug!("scancel: {trouble}");
            }
        }
    }

    /// Says once what is the matter with the list of jobs.
    pub(super) fn complain(&self) {
        let trouble = self.queue.trouble();
        let mut complained = self
            .complained
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if trouble != *complained {
            if let Some(trouble) = &trouble {
                (self.warn)(&format!(
                    "`squeue` does not answer ({trouble}); jobs are followed by their files meanwhile"
                ));
            }
            *complained = trouble;
        }
    }
}

/// The state of a job that the queue no longer lists, where the cluster keeps accounts.
pub(super) fn accounted(id: &str) -> Option<String> {
    let mut sacct = command("sacct");
    sacct.args([
        "--allocations",
        "--noheader",
        "--parsable2",
        "--format=State",
        "--jobs",
        id,
    ]);
    let text = answer(&mut sacct).ok()?;
    // `CANCELLED by 1000`
    let state = text.lines().next()?.split_whitespace().next()?;
    Some(state.to_owned())
}
