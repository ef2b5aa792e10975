//! Charts of what was reported step by step: the losses in one, every other metric in one of its own.

use super::Card;
use crate::insight::chart::{self, Series};
use crate::runs::{Curve, Curves};
use crate::ui::plural;

/// Charts of all curves, those of losses first.
pub(super) fn cards(curves: &Curves) -> Vec<Card> {
    let mut nodes: Vec<&str> = curves.keys().map(|(node, _)| node.as_str()).collect();
    nodes.dedup();
    let several = nodes.len() > 1;
    let mut cards = Vec::new();
    for node in nodes {
        let of_node = || {
            curves
                .iter()
                .filter(|((owner, _), _)| owner == node)
                .map(|((_, metric), curve)| (metric.as_str(), curve))
        };
        let at = if several {
            format!(" of {node}")
        } else {
            String::new()
        };
        let mut losses: Vec<_> = of_node().filter(|(metric, _)| is_loss(metric)).collect();
        // Training before validation.
        losses.reverse();
        if !losses.is_empty() {
            cards.push(card(
                format!("Loss{at}"),
                "mean cross-entropy per token",
                &losses,
            ));
        }
        for (metric, curve) in of_node().filter(|(metric, _)| !is_loss(metric)) {
            let (title, unit) = named(metric);
            cards.push(card(format!("{title}{at}"), unit, &[(metric, curve)]));
        }
    }
    cards
}

fn is_loss(metric: &str) -> bool {
    metric.rsplit('/').next() == Some("loss")
}

/// A title and a unit for the metrics that training reports.
fn named(metric: &str) -> (&str, &str) {
    match metric {
        "train/lr" => ("Learning rate", "per step"),
        "train/grad_norm" => ("Gradient norm", "before clipping"),
        "train/tokens" => ("Tokens", "per step"),
        "train/tokens_per_second" => ("Speed", "tokens per second"),
        other => (other, ""),
    }
}

fn card(title: String, unit: &str, curves: &[(&str, &Curve)]) -> Card {
    let most = curves.iter().map(|(_, curve)| curve.len()).max();
    let series: Vec<Series> = curves
        .iter()
        .map(|(metric, curve)| Series {
            label: match *metric {
                "train/loss" => "training",
                "eval/loss" => "validation",
                _ if curves.len() == 1 => "",
                other => other,
            }
            .to_owned(),
            points: curve
                .iter()
                .map(|(step, value)| (*step as f64, *value))
                .collect(),
            marked: Some(curve.len()) != most,
        })
        .collect();
    let broken = curves
        .iter()
        .flat_map(|(_, curve)| curve.iter())
        .filter(|(_, value)| !value.is_finite())
        .count();
    let mut note = unit.to_owned();
    if broken > 0 {
        note.push_str(&format!("; {} not finite", plural(broken as u64, "value")));
    }
    let svg = chart::lines(&title, "step", &series);
    Card { title, note, svg }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_share_a_chart() {
        let curve = |length: u64| (1..=length).map(|step| (step, 1.0 / step as f64)).collect();
        let name = |metric: &str| ("train.fit".to_owned(), metric.to_owned());
        let curves = Curves::from([
            (name("train/loss"), curve(9)),
            (name("eval/loss"), curve(2)),
            (name("train/lr"), vec![(1, 0.1), (2, f64::NAN)]),
        ]);
        let cards = cards(&curves);
        let titles: Vec<_> = cards.iter().map(|card| card.title.as_str()).collect();
        assert_eq!(titles, ["Loss", "Learning rate"]);
        assert!(cards[0].svg.contains("training") && cards[0].svg.contains("validation"));
        assert_eq!(cards[0].svg.matches("<circle").count(), 2);
        assert_eq!(cards[1].note, "per step; 1 value not finite");
    }
}
