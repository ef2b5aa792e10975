//! The order nodes run in, and the cycles that prevent one.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A topological order that keeps the order of declaration where it is free, and every cycle found, as nodes in the direction
/// of the data. Nodes of a cycle are in the order too, so that what follows them can be checked.
///
/// `parents[n]` are the nodes that `n` reads. Iterative: depth does not matter.
pub(super) fn order(parents: &[Vec<usize>]) -> (Vec<usize>, Vec<Vec<usize>>) {
    let mut children = vec![Vec::new(); parents.len()];
    let mut waiting = vec![0_usize; parents.len()];
    for (node, reads) in parents.iter().enumerate() {
        waiting[node] = reads.len();
        for &parent in reads {
            children[parent].push(node);
        }
    }
    let mut done = vec![false; parents.len()];
    let mut ready: BinaryHeap<_> = (0..parents.len())
        .filter(|&node| waiting[node] == 0)
        .map(Reverse)
        .collect();
    let (mut order, mut cycles) = (Vec::with_capacity(parents.len()), Vec::new());
    loop {
        while let Some(Reverse(node)) = ready.pop() {
            if std::mem::replace(&mut done[node], true) {
                continue;
            }
            order.push(node);
            for &child in &children[node] {
                waiting[child] -= 1;
                if waiting[child] == 0 {
                    ready.push(Reverse(child));
                }
            }
        }
        let Some(start) = (0..parents.len()).find(|&node| !done[node]) else {
            break;
        };
        let cycle = cycle_before(start, parents, &done);
        // Taken as done so that further cycles are found.
        ready.push(Reverse(cycle[0]));
        cycles.push(cycle);
    }
    (order, cycles)
}

/// Walks against the data from a node that waits; every such node has a parent that waits, so the walk meets itself.
fn cycle_before(start: usize, parents: &[Vec<usize>], done: &[bool]) -> Vec<usize> {
    let mut position = vec![usize::MAX; parents.len()];
    let mut walk = Vec::new();
    let mut node = start;
    while position[node] == usize::MAX {
        position[node] = walk.len();
        walk.push(node);
        match parents[node].iter().copied().find(|&parent| !done[parent]) {
            Some(parent) => node = parent,
            None => break,
        }
    }
    let mut cycle = walk.split_off(position[node]);
    cycle.reverse();
    // Begin with the node declared first.
    let first = cycle
        .iter()
        .enumerate()
        .min_by_key(|(_, node)| **node)
        .map_or(0, |(place, _)| place);
    cycle.rotate_left(first);
    cycle
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_declaration_order_where_free() {
        assert_eq!(
            order(&[vec![], vec![3], vec![], vec![]]),
            (vec![0, 2, 3, 1], vec![])
        );
        assert_eq!(order(&[]), (vec![], vec![]));
    }

    #[test]
    fn finds_every_separate_cycle() {
        // 0 → 1 → 2 → 0, 3 → 3, 4 after 2.
        let (order, cycles) = order(&[vec![2], vec![0], vec![1], vec![3], vec![2]]);
        assert_eq!(cycles, vec![vec![0, 1, 2], vec![3]]);
        assert_eq!(order.len(), 5);
    }

    #[test]
    fn goes_deep_without_recursion() {
        let chain: Vec<Vec<usize>> = (0..200_000_usize)
            .map(|node| node.checked_sub(1).into_iter().collect())
            .collect();
        let (order, cycles) = order(&chain);
        assert!(cycles.is_empty() && order.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
