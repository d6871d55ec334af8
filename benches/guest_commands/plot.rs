//! Grouped bars over a logarithmic axis, as SVG. That is little enough to write by hand: no package is needed for it.

use std::fmt::Write;

/// Bars in groups: of each group, one bar a series.
pub(crate) struct Plot {
    pub(crate) title: String,
    /// What the axis counts.
    pub(crate) unit: String,
    /// Names of the groups; each is broken into lines at its commas.
    pub(crate) groups: Vec<String>,
    pub(crate) series: Vec<Series>,
}

pub(crate) struct Series {
    pub(crate) name: String,
    /// Its bars, one a group. One that is not above 0, where there is nothing, is not drawn.
    pub(crate) values: Vec<f64>,
}

/// Told apart by most people and in grey (Okabe and Ito), the first two for what the others are compared with.
const COLOURS: [&str; 8] = ["#bbbbbb", "#666666", "#e69f00", "#d55e00", "#56b4e9", "#0072b2", "#5fd0a5", "#00785a"];

const BAR: f64 = 16.0;
const GROUP_GAP: f64 = 22.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
/// Room above the highest bar for its value.
const ABOVE: f64 = 44.0;
const TITLE: f64 = 34.0;
const LEGEND_LINE: f64 = 20.0;
const LEGEND_COLUMN: f64 = 270.0;
const LABELS: f64 = 50.0;
/// Narrower, the title and the legend would not fit.
const MIN_WIDTH: f64 = 640.0;

impl Series {
    /// Its bars, each with the number of its group.
    fn drawn(&self) -> impl Iterator<Item = (usize, &f64)> {
        self.values.iter().enumerate().filter(|(_, value)| **value > 0.0)
    }
}

impl Plot {
    pub(crate) fn svg(&self) -> String {
        let bars_width = BAR * count(self.series.len());
        let group_width = bars_width.max(70.0) + GROUP_GAP;
        let width = (LEFT + group_width * count(self.groups.len()) + RIGHT).max(MIN_WIDTH);
        let legend_columns = ((width - LEFT) / LEGEND_COLUMN).floor().max(1.0);
        let legend_lines = (count(self.series.len()) / legend_columns).ceil();
        let top = TITLE + legend_lines * LEGEND_LINE + ABOVE;
        let bottom = top + HEIGHT;
        let all = bottom + LABELS;

        let values = || self.series.iter().flat_map(|series| &series.values).copied().filter(|value| *value > 0.0);
        let ticks = ticks(values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
        let (lowest, highest) = (ticks[0], ticks[ticks.len() - 1]);
        let y = |value: f64| bottom - (value / lowest).log10() / (highest / lowest).log10() * HEIGHT;

        let mut svg = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{all}" viewBox="0 0 {width} {all}" font-family="sans-serif" font-size="12">
<rect width="{width}" height="{all}" fill="white"/>
"#
        );
        let mut text = |x: f64, y: f64, attributes: &str, text: &str| {
            let text = text.replace('&', "&amp;").replace('<', "&lt;");
            let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" {attributes}>{text}</text>"#);
        };
        text(LEFT, 22.0, r#"font-size="15" font-weight="bold""#, &self.title);
        let axis = format!(r#"text-anchor="middle" transform="rotate(-90 18 {:.1})""#, bottom - HEIGHT / 2.0);
        text(18.0, bottom - HEIGHT / 2.0, &axis, &self.unit);
        for tick in &ticks {
            text(LEFT - 8.0, y(*tick) + 4.0, r#"text-anchor="end""#, &tick.to_string());
        }
        for (number, group) in self.groups.iter().enumerate() {
            let middle = LEFT + group_width * (count(number) + 0.5);
            for (line, part) in group.split(", ").enumerate() {
                text(middle, bottom + 18.0 + 15.0 * count(line), r#"text-anchor="middle""#, part);
            }
        }
        let place = |number: usize| {
            let (line, column) = ((count(number) / legend_columns).floor(), count(number) % legend_columns);
            (LEFT + column * LEGEND_COLUMN, TITLE + line * LEGEND_LINE)
        };
        for (number, series) in self.series.iter().enumerate() {
            let (x, y) = place(number);
            text(x + 18.0, y + 11.0, "", &series.name);
        }
        let bar = |group: usize, series: usize| {
            LEFT + group_width * count(group) + (group_width - bars_width) / 2.0 + BAR * count(series)
        };
        for (number, series) in self.series.iter().enumerate() {
            for (group, value) in series.drawn() {
                let (x, y) = (bar(group, number) + BAR / 2.0 + 3.5, y(*value) - 4.0);
                let attributes = format!(r#"font-size="10" transform="rotate(-90 {x:.1} {y:.1})""#);
                text(x, y, &attributes, &format!("{value:.0}"));
            }
        }

        for tick in &ticks {
            let (y, right) = (y(*tick), width - RIGHT);
            let _ = writeln!(svg, r#"<path d="M{LEFT} {y:.1}H{right:.1}" stroke="black" stroke-opacity="0.15"/>"#);
        }
        for (number, series) in self.series.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let (x, y_legend) = place(number);
            let _ = writeln!(svg, r#"<rect x="{x:.1}" y="{y_legend:.1}" width="12" height="12" fill="{colour}"/>"#);
            for (group, value) in series.drawn() {
                let (x, y) = (bar(group, number), y(*value));
                let (width, height) = (BAR - 1.0, bottom - y);
                let _ = writeln!(
                    svg,
                    r#"<rect x="{x:.1}" y="{y:.1}" width="{width:.1}" height="{height:.1}" fill="{colour}"/>"#
                );
            }
        }
        svg.push_str("</svg>\n");
        svg
    }
}

/// The round values that an axis shows: 1, 2 and 5 of each decade, from one that is below `lowest` to one that is not below
/// `highest`.
fn ticks(lowest: f64, highest: f64) -> Vec<f64> {
    let decades = (0..12).map(|decade| 10_f64.powi(decade));
    let round: Vec<f64> = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * decade)).collect();
    let first = round.iter().rposition(|tick| *tick < lowest).unwrap_or(0);
    let last = round.iter().position(|tick| *tick >= highest).unwrap_or(round.len() - 1);
    // Without any values there is still an axis.
    round[first.min(last.saturating_sub(1))..=last.max(1)].to_vec()
}

/// A small number of things.
fn count(things: usize) -> f64 {
    u32::try_from(things).map_or(f64::INFINITY, f64::from)
}

#[cfg(test)]
#[allow(unused, reason = "tests/benchmark.rs runs these; a bench without a harness leaves them out")]
mod tests {
    use super::*;

    #[test]
    fn an_axis_begins_below_the_lowest_bar_and_ends_above_the_highest() {
        assert_eq!(ticks(127.0, 950.0), [100.0, 200.0, 500.0, 1000.0]);
        assert_eq!(ticks(200.0, 200.0), [100.0, 200.0]);
        assert_eq!(ticks(1500.0, 12_000.0), [1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0]);
        assert_eq!(ticks(f64::INFINITY, 0.0), [1.0, 2.0]);
    }

    #[test]
    fn every_bar_is_drawn_with_its_value_and_text_is_escaped() {
        let series = |name: &str, values: &[f64]| Series { name: name.into(), values: values.into() };
        let plot = Plot {
            title: "a < b & c".into(),
            unit: "µs".into(),
            groups: vec!["Hash, 1 KiB".into(), "GetRandom".into()],
            series: vec![series("one", &[100.0, 50.4]), series("two", &[20.0, 0.0])],
        };
        let svg = plot.svg();
        assert!(svg.contains(">a &lt; b &amp; c</text>"), "{svg}");
        for value in ["100", "50", "20"] {
            assert!(svg.contains(&format!(">{value}</text>")), "{value}: {svg}");
        }
        // The background, two in the legend, three bars over an axis from 10 to 100: the highest as high as the axis.
        assert_eq!(svg.matches("<rect").count(), 1 + 2 + 3);
        assert!(svg.contains(r#"height="320.0""#) && svg.contains(r#"height="96.3""#), "{svg}");
    }
}
