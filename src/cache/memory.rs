//! How much memory a database may hold before it spills to disk.

use sysinfo::System;

/// Less than this and DuckDB cannot work at all.
const LEAST: u64 = 256 << 20;

/// One `part`-th of the memory that is free now, in bytes; within a control group, of what the group may still take.
pub(crate) fn share(part: u64) -> u64 {
    let mut system = System::new();
    system.refresh_memory();
    let group = system.cgroup_limits().map(|limits| limits.free_memory);
    share_of(system.available_memory(), group, part)
}

fn share_of(machine: u64, group: Option<u64>, part: u64) -> u64 {
    let free = group.map_or(machine, |group| group.min(machine));
    (free / part).max(LEAST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_machine_and_group_counts() {
        assert_eq!(share_of(8 << 30, None, 2), 4 << 30);
        assert_eq!(share_of(8 << 30, Some(2 << 30), 2), 1 << 30);
        assert_eq!(share_of(8 << 30, Some(1 << 20), 2), LEAST);
    }
}
