//! Nodes, or parts of their work, in processes on this machine, one for each of its GPUs.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::follow::{Running, Standing};
use super::job::{Prepared, finish_node, finish_parts, prepare_node, prepare_parts};
use crate::ops::{Context, Item, OpError, Outputs, Parts};

/// Lines shown of what a process printed.
const TAIL: usize = 20;

/// Does a node on the first device, or items of its work in as many processes as there are devices.
#[derive(Debug, Clone)]
pub struct PerDevice {
    /// The worker's program.
    pub program: PathBuf,
    /// What `CUDA_VISIBLE_DEVICES` is to be in each process.
    pub devices: Vec<String>,
}

impl PerDevice {
    /// Has a process do the whole call, as the op's own function would do it here.
    pub fn run(&self, context: &Context<'_>) -> Result<Outputs, OpError> {
        let prepared = prepare_node(context)?;
        finish_node(&prepared, Processes::start(self, &prepared), context)
    }
}

impl Parts for PerDevice {
    fn answer(
        &self,
        context: &Context<'_>,
        items: &[Item],
        take: &mut dyn FnMut(&[String]) -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        let prepared = prepare_parts(context, items, self.devices.len() as u32)?;
        finish_parts(&prepared, Processes::start(self, &prepared), context, take)
    }
}

struct Processes<'a> {
    prepared: &'a Prepared,
    children: Vec<Option<Child>>,
    devices: &'a [String],
}

impl<'a> Processes<'a> {
    fn start(how: &'a PerDevice, prepared: &'a Prepared) -> Result<Self, OpError> {
        let mut processes = Self {
            prepared,
            children: (0..prepared.job.tasks).map(|_| None).collect(),
            devices: &how.devices,
        };
        let folder = &prepared.folder;
        // An earlier run may have cut the work into more parts than there are devices now.
        for task in prepared.open_tasks()? {
            let device = &how.devices[task as usize % how.devices.len()];
            let log = fs_err::File::create(folder.logs().join(format!("{task}.txt")))?;
            let (out, err) = (log.file().try_clone()?, log.into_file());
            let mut command = Command::new(&how.program);
            command
                .arg("node")
                .arg(folder.root())
                .args(["--task", &task.to_string()])
                .args(["--parent", &std::process::id().to_string()])
                .env("CUDA_VISIBLE_DEVICES", device)
                // The worker is no job, though flow may be in one.
                .env_remove("SLURM_JOB_ID")
                .stdin(Stdio::null())
                .stdout(out)
                .stderr(err)
                // A terminal's interrupt comes by this process alone.
                .process_group(0);
            let child = command.spawn().map_err(|error| {
                OpError::new(format!(
                    "`{}` cannot be started: {error}",
                    how.program.display()
                ))
            })?;
            processes.children[task as usize] = Some(child);
        }
        Ok(processes)
    }

    fn signal(&mut self, signal: Signal) {
        for child in self.children.iter_mut().flatten() {
            if matches!(child.try_wait(), Ok(None)) {
                // It may have ended by itself meanwhile.
                let _ = kill_process(Pid::from_child(child), signal);
            }
        }
    }
}

impl Running for Processes<'_> {
    fn standing(&mut self, task: u32) -> Result<Standing, OpError> {
        let name = self.name(task);
        let Some(child) = &mut self.children[task as usize] else {
            return Ok(Standing::Alive { waiting: None });
        };
        Ok(match child.try_wait()? {
            None => Standing::Alive { waiting: None },
            Some(status) => Standing::Ended {
                what: format!("{name} ended without a result ({status})"),
                help: "run again: verdicts so far are kept".to_owned(),
            },
        })
    }

    fn again(&mut self, task: u32) -> Result<(), OpError> {
        Err(OpError::new(format!("{} was lost", self.name(task))))
    }

    fn stop(&mut self) {
        self.signal(Signal::TERM);
    }

    fn kill(&mut self) {
        self.signal(Signal::KILL);
    }

    fn name(&mut self, task: u32) -> String {
        let device = &self.devices[task as usize % self.devices.len()];
        format!("the process of GPU {device}")
    }

    fn printed(&mut self, task: u32) -> Vec<String> {
        super::folder::last_lines(
            &self.prepared.folder.logs().join(format!("{task}.txt")),
            TAIL,
        )
    }
}

impl Drop for Processes<'_> {
    /// Nothing goes on that nobody follows.
    fn drop(&mut self) {
        self.kill();
        for child in self.children.iter_mut().flatten() {
            let _ = child.wait();
        }
    }
}
