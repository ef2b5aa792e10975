//! Median, smallest and largest of repeated measurements.

use serde_json::{Value, json};

/// `numbers` has at least one.
pub fn spread(mut numbers: Vec<f64>) -> [f64; 3] {
    numbers.sort_by(f64::total_cmp);
    let middle = numbers.len() / 2;
    let median = match numbers.len() % 2 {
        1 => numbers[middle],
        _ => (numbers[middle - 1] + numbers[middle]) / 2.0,
    };
    [median, numbers[0], numbers[numbers.len() - 1]]
}

pub fn json_of([median, min, max]: [f64; 3]) -> Value {
    json!({"median": median, "min": min, "max": max})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(spread(vec![3.0, 1.0, 2.0]), [2.0, 1.0, 3.0]);
        assert_eq!(spread(vec![4.0, 1.0, 2.0, 3.0]), [2.5, 1.0, 4.0]);
    }
}
