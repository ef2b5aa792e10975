//! Curves over steps, each named at its end.

use super::WIDTH;
use super::scale::Scale;
use super::svg::{Anchor, Svg};
use crate::ui::number;

pub struct Series {
    pub label: String,
    /// In order of x; a value that is not finite is a gap.
    pub points: Vec<(f64, f64)>,
    /// Few points that were measured now and then are marked.
    pub marked: bool,
}

const LEFT: f64 = 44.0;
const RIGHT: f64 = 108.0;
const TOP: f64 = 12.0;
const PLOT: f64 = 170.0;
/// More points than pixels say nothing more.
const MOST_POINTS: usize = 300;

/// Curves in one frame; `axis` names x and its unit.
pub fn lines(title: &str, axis: &str, series: &[Series]) -> String {
    let all = || series.iter().flat_map(|series| &series.points);
    let x = Scale::around(all().map(|point| point.0), LEFT, WIDTH - RIGHT);
    let y = Scale::around(all().map(|point| point.1), TOP + PLOT, TOP).rounded(4);
    let mut svg = Svg::new(WIDTH, TOP + PLOT + 38.0, title);
    for (value, label) in y.ticks(4) {
        svg.line("grid", (LEFT, y.at(value)), (WIDTH - RIGHT, y.at(value)));
        svg.text("tick", (LEFT - 6.0, y.at(value) + 4.0), Anchor::End, &label);
    }
    for (value, label) in x.ticks(5) {
        svg.text(
            "tick",
            (x.at(value), TOP + PLOT + 16.0),
            Anchor::Middle,
            &label,
        );
    }
    svg.text(
        "tick",
        ((LEFT + WIDTH - RIGHT) / 2.0, TOP + PLOT + 33.0),
        Anchor::Middle,
        axis,
    );
    for (index, one) in series.iter().enumerate() {
        let class = format!("line s{}", index % 4);
        for part in one.points.split(|point| !point.1.is_finite()) {
            let points: Vec<_> = thinned(part)
                .into_iter()
                .map(|point| (x.at(point.0), y.at(point.1)))
                .collect();
            svg.polyline(&class, &points);
            if one.marked || points.len() == 1 {
                for (point, (px, py)) in part.iter().zip(&points) {
                    let tip = format!("{} at {axis} {}: {}", one.label, point.0, number(point.1));
                    svg.dot(&format!("dot s{}", index % 4), (*px, *py), 3.0, &tip);
                }
            }
        }
    }
    for (index, (place, label)) in ends(series, y).into_iter().enumerate() {
        svg.cut_text(
            &format!("name s{}", index % 4),
            (WIDTH - RIGHT + 6.0, place + 4.0),
            Anchor::Start,
            &label,
            18,
        );
    }
    svg.finish("chart")
}

/// Where each curve's name stands: at its last value, but none upon another.
fn ends(series: &[Series], y: Scale) -> Vec<(f64, String)> {
    const LINE: f64 = 15.0;
    let end = |series: &Series| {
        let last = series.points.iter().rfind(|point| point.1.is_finite());
        last.map_or((TOP + PLOT, series.label.clone()), |point| {
            (
                y.at(point.1),
                format!("{} {}", series.label, number(point.1)),
            )
        })
    };
    let mut places: Vec<(f64, String)> = series.iter().map(end).collect();
    let mut order: Vec<usize> = (0..places.len()).collect();
    order.sort_by(|a, b| places[*a].0.total_cmp(&places[*b].0));
    for pair in 1..order.len() {
        let above = places[order[pair - 1]].0;
        let below = &mut places[order[pair]].0;
        *below = below.max(above + LINE);
    }
    // Too low: move up from below.
    let mut limit = TOP + PLOT;
    for index in order.into_iter().rev() {
        places[index].0 = places[index].0.min(limit);
        limit = places[index].0 - LINE;
    }
    places
}

/// At most [`MOST_POINTS`]: the lowest and the highest of each stretch, so that no peak is lost.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MOST_POINTS {
        return points.to_vec();
    }
    let stretch = points.len().div_ceil(MOST_POINTS / 2);
    points
        .chunks(stretch)
        .flat_map(|chunk| {
            let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
            let ends = [chunk.iter().min_by(by_value), chunk.iter().max_by(by_value)];
            let mut ends: Vec<_> = ends.into_iter().flatten().copied().collect();
            ends.sort_by(|a, b| a.0.total_cmp(&b.0));
            ends.dedup();
            ends
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_peak_is_lost() {
        let mut points: Vec<_> = (0..10_000).map(|x| (f64::from(x), 1.0)).collect();
        points[4_321].1 = 9.0;
        let kept = thinned(&points);
        assert!(kept.len() <= MOST_POINTS, "{}", kept.len());
        assert!(kept.contains(&(4_321.0, 9.0)));
    }

    #[test]
    fn names_do_not_cover_each_other() {
        let series = ["train", "validation", "other"].map(|label| Series {
            label: label.to_owned(),
            points: vec![(0.0, 2.0), (1.0, 1.0)],
            marked: false,
        });
        let y = Scale::around([1.0, 2.0], TOP + PLOT, TOP);
        let mut places: Vec<_> = ends(&series, y).into_iter().map(|end| end.0).collect();
        places.sort_by(f64::total_cmp);
        assert!(places.windows(2).all(|pair| pair[1] - pair[0] >= 15.0));
        assert!(
            places
                .iter()
                .all(|place| (TOP..=TOP + PLOT).contains(place))
        );
    }

    #[test]
    fn gaps_stay_gaps() {
        let series = Series {
            label: "loss".to_owned(),
            points: vec![
                (1.0, 2.0),
                (2.0, 1.5),
                (3.0, f64::NAN),
                (4.0, 1.0),
                (5.0, 0.9),
            ],
            marked: false,
        };
        let drawn = lines("t", "step", &[series]);
        assert_eq!(drawn.matches("<path").count(), 2);
        assert!(!drawn.contains("NaN"));
    }
}
