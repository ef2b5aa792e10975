//! What nodes occupy while they run: CPU slots by number, GPUs by name.

use crate::graph::Resources;

#[derive(Debug)]
pub(super) struct Slots {
    cpus: u32,
    free_cpus: u32,
    gpus: u32,
    free_gpus: Vec<u32>,
}

/// Taken slots, to be given back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    cpus: u32,
    pub(super) gpus: Vec<u32>,
}

impl Slots {
    pub(super) fn new(cpus: u32, gpus: &[u32]) -> Self {
        let mut free_gpus = gpus.to_vec();
        free_gpus.sort_unstable_by(|left, right| right.cmp(left));
        Self {
            cpus: cpus.max(1),
            free_cpus: cpus.max(1),
            gpus: gpus.len() as u32,
            free_gpus,
        }
    }

    pub(super) fn any_free(&self) -> bool {
        self.free_cpus > 0
    }

    /// Takes what a node needs, at most all there is, if it is free now.
    pub(super) fn take(&mut self, need: Resources) -> Option<Taken> {
        let (cpus, gpus) = (need.cpu.clamp(1, self.cpus), need.gpu.min(self.gpus));
        if cpus > self.free_cpus || gpus as usize > self.free_gpus.len() {
            return None;
        }
        self.free_cpus -= cpus;
        let gpus = self
            .free_gpus
            .split_off(self.free_gpus.len() - gpus as usize);
        Some(Taken { cpus, gpus })
    }

    pub(super) fn give_back(&mut self, taken: Taken) {
        self.free_cpus += taken.cpus;
        self.free_gpus.extend(taken.gpus);
        self.free_gpus
            .sort_unstable_by(|left, right| right.cmp(left));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_run_out_and_come_back() {
        let mut slots = Slots::new(2, &[0, 1]);
        let one = slots.take(Resources { cpu: 1, gpu: 1 }).unwrap();
        assert_eq!(one.gpus, [0]);
        assert_eq!(
            slots.take(Resources {
                cpu: u32::MAX,
                gpu: 0
            }),
            None
        );
        let two = slots.take(Resources { cpu: 1, gpu: 1 }).unwrap();
        assert_eq!(two.gpus, [1]);
        assert!(!slots.any_free());
        slots.give_back(one);
        slots.give_back(two);
        assert!(
            slots
                .take(Resources {
                    cpu: u32::MAX,
                    gpu: 5
                })
                .is_some()
        );
    }

    #[test]
    fn a_gpu_is_asked_for_only_where_there_is_one() {
        assert!(
            Slots::new(1, &[])
                .take(Resources { cpu: 1, gpu: 1 })
                .is_some()
        );
    }
}
