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
/// What the name of a group takes.
const GROUP_LABEL: f64 = 70.0;
/// Height of the axis.
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TITLE: f64 = 34.0;
const LEGEND_LINE: f64 = 20.0;
const LEGEND_COLUMN: f64 = 270.0;
/// Room above the highest bar for its value.
const ABOVE: f64 = 44.0;
/// Room below the axis.
const LABELS: f64 = 50.0;

impl Plot {
    pub(crate) fn svg(&self) -> String {
        let layout = Layout::of(self);
        let Layout { width, height, .. } = layout;
        let mut svg = format!(
            r#"<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">
<rect width="{width}" height="{height}" fill="white"/>
"#
        );
        text(&mut svg, (LEFT, 22.0), r#"font-size="15" font-weight="bold""#, &self.title);
        self.draw_axis(&mut svg, &layout);
        for (number, group) in self.groups.iter().enumerate() {
            let middle = LEFT + layout.group_width * (count(number) + 0.5);
            for (line, part) in group.split(", ").enumerate() {
                let at = (middle, layout.bottom + 18.0 + 15.0 * count(line));
                text(&mut svg, at, r#"text-anchor="middle""#, part);
            }
        }
        for (number, series) in self.series.iter().enumerate() {
            series.draw(&mut svg, &layout, number);
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn draw_axis(&self, svg: &mut String, layout: &Layout) {
        let middle = layout.bottom - HEIGHT / 2.0;
        let attributes = format!(r#"text-anchor="middle" transform="rotate(-90 18 {middle:.1})""#);
        text(svg, (18.0, middle), &attributes, &self.unit);
        for tick in &layout.ticks {
            let (y, right) = (layout.y(*tick), layout.width - RIGHT);
            text(svg, (LEFT - 8.0, y + 4.0), r#"text-anchor="end""#, &tick.to_string());
            let _ = writeln!(svg, r#"<path d="M{LEFT} {y:.1}H{right:.1}" stroke="black" stroke-opacity="0.15"/>"#);
        }
    }
}

impl Series {
    /// Its bars, each with the number of its group.
    fn bars(&self) -> impl Iterator<Item = (usize, &f64)> {
        self.values.iter().enumerate().filter(|(_, value)| **value > 0.0)
    }

    /// Draws its name and its bars with their values.
    fn draw(&self, svg: &mut String, layout: &Layout, number: usize) {
        let colour = COLOURS[number % COLOURS.len()];
        let rectangle = |svg: &mut String, (x, y): (f64, f64), width: f64, height: f64| {
            let size = format!(r#"width="{width:.1}" height="{height:.1}""#);
            let _ = writeln!(svg, r#"<rect x="{x:.1}" y="{y:.1}" {size} fill="{colour}"/>"#);
        };
        let (x, y) = layout.legend(number);
        rectangle(svg, (x, y), 12.0, 12.0);
        text(svg, (x + 18.0, y + 11.0), "", &self.name);
        for (group, value) in self.bars() {
            let (x, y) = (layout.x(group, number), layout.y(*value));
            rectangle(svg, (x, y), BAR - 1.0, layout.bottom - y);
            let (x, y) = (x + BAR / 2.0 + 3.5, y - 4.0);
            let attributes = format!(r#"font-size="10" transform="rotate(-90 {x:.1} {y:.1})""#);
            text(svg, (x, y), &attributes, &format!("{value:.0}"));
        }
    }
}

/// What lies where.
struct Layout {
    width: f64,
    height: f64,
    bars_width: f64,
    group_width: f64,
    legend_columns: usize,
    /// Where the bars stand.
    bottom: f64,
    /// Values on the axis; at least two.
    ticks: Vec<f64>,
}

impl Layout {
    fn of(plot: &Plot) -> Self {
        let bars_width = BAR * count(plot.series.len());
        let group_width = bars_width.max(GROUP_LABEL) + GROUP_GAP;
        let width = (LEFT + group_width * count(plot.groups.len()) + RIGHT).max(LEFT + 2.0 * LEGEND_COLUMN);
        let legend_columns = (2..=8).rev().find(|columns| LEFT + count(*columns) * LEGEND_COLUMN <= width).unwrap_or(2);
        let legend = LEGEND_LINE * count(plot.series.len().div_ceil(legend_columns));
        let bottom = TITLE + legend + ABOVE + HEIGHT;
        let values = || plot.series.iter().flat_map(Series::bars).map(|(_, value)| *value);
        let ticks = ticks(values().fold(f64::INFINITY, f64::min), values().fold(0.0, f64::max));
        Self { width, height: bottom + LABELS, bars_width, group_width, legend_columns, bottom, ticks }
    }

    /// The left side of a bar.
    fn x(&self, group: usize, series: usize) -> f64 {
        let margin = (self.group_width - self.bars_width) / 2.0;
        LEFT + self.group_width * count(group) + margin + BAR * count(series)
    }

    /// The height of a value.
    fn y(&self, value: f64) -> f64 {
        let (lowest, highest) = (self.ticks[0], self.ticks[self.ticks.len() - 1]);
        self.bottom - (value / lowest).log10() / (highest / lowest).log10() * HEIGHT
    }

    /// The place of a series in the legend.
    fn legend(&self, series: usize) -> (f64, f64) {
        let (line, column) = (series / self.legend_columns, series % self.legend_columns);
        (LEFT + count(column) * LEGEND_COLUMN, TITLE + count(line) * LEGEND_LINE)
    }
}

fn text(svg: &mut String, (x, y): (f64, f64), attributes: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" {attributes}>{text}</text>"#);
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
