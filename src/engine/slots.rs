//! What nodes occupy while they run: CPU slots by number, GPUs by name.

use crate::graph::Resources;

#[derive(Debug)]
pub(super) struct Slots {
    cpus: u32,
    free_cpus: u32,
    gpus: u32,
    free_gpus: Vec<u32>,
    /// Nodes that the executor may still be given.
    free_elsewhere: u32,
}

/// Taken slots, to be given back.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Taken {
    cpus: u32,
    elsewhere: bool,
    pub(super) gpus: Vec<u32>,
}

impl Slots {
    pub(super) fn new(cpus: u32, gpus: &[u32], elsewhere: u32) -> Self {
        let mut free_gpus = gpus.to_vec();
        free_gpus.sort_unstable_by(|left, right| right.cmp(left));
        Self {
            cpus: cpus.max(1),
            free_cpus: cpus.max(1),
            gpus: gpus.len() as u32,
            free_gpus,
            free_elsewhere: elsewhere,
        }
    }

    pub(super) fn any_free(&self) -> bool {
        self.free_cpus > 0 || self.free_elsewhere > 0
    }

    /// Takes what a node needs, at most all there is, if it is free now.
    pub(super) fn take(&mut self, need: Resources) -> Option<Taken> {
        let gpus = need.gpu.min(self.gpus);
        let cpus = match need.cpu {
            // The other GPUs' nodes need cores too.
            u32::MAX if gpus > 0 => (self.cpus * gpus / self.gpus).max(1),
            cpus => cpus.clamp(1, self.cpus),
        };
        if cpus > self.free_cpus || gpus as usize > self.free_gpus.len() {
            return None;
        }
        self.free_cpus -= cpus;
        let gpus = self
            .free_gpus
            .split_off(self.free_gpus.len() - gpus as usize);
        Some(Taken {
            cpus,
            gpus,
            elsewhere: false,
        })
    }

    /// Takes a place among the nodes that the executor runs, if one is free.
    pub(super) fn take_elsewhere(&mut self) -> Option<Taken> {
        self.free_elsewhere = self.free_elsewhere.checked_sub(1)?;
        Some(Taken {
            cpus: 0,
            gpus: Vec::new(),
            elsewhere: true,
        })
    }

    pub(super) fn give_back(&mut self, taken: Taken) {
        self.free_elsewhere += u32::from(taken.elsewhere);
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
        let mut slots = Slots::new(2, &[0, 1], 0);
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
    fn nodes_on_different_gpus_share_the_cores() {
        let all = |gpu| Resources { cpu: u32::MAX, gpu };
        let mut slots = Slots::new(8, &[0, 1], 0);
        let (one, two) = (slots.take(all(1)).unwrap(), slots.take(all(1)).unwrap());
        assert_eq!(
            (one.gpus.as_slice(), two.gpus.as_slice()),
            (&[0][..], &[1][..])
        );
        assert_eq!(slots.take(all(1)), None);
        slots.give_back(one);
        assert_eq!(slots.take(all(2)), None);
        slots.give_back(two);
        assert_eq!(slots.take(all(2)).unwrap().cpus, 8);
    }

    #[test]
    fn what_runs_elsewhere_has_places_of_its_own() {
        let mut slots = Slots::new(1, &[], 1);
        let here = slots.take(Resources { cpu: 1, gpu: 0 }).unwrap();
        let there = slots.take_elsewhere().unwrap();
        assert!(slots.take_elsewhere().is_none() && !slots.any_free());
        slots.give_back(there);
        assert!(slots.take(Resources { cpu: 1, gpu: 0 }).is_none());
        assert!(slots.take_elsewhere().is_some());
        slots.give_back(here);
        assert!(slots.any_free());
    }

    #[test]
    fn a_gpu_is_asked_for_only_where_there_is_one() {
        assert!(
            Slots::new(1, &[], 0)
                .take(Resources { cpu: 1, gpu: 1 })
                .is_some()
        );
    }
}
