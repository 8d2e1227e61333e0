//! The results as a plot: `docs/comparison.svg`. A bar is a median, a tick one run.

use super::results::{Measurement, Results};
use std::fmt::Write;

/// Sizes in pixels.
const WIDTH: f64 = 760.0;
const LABEL_WIDTH: f64 = 280.0;
const VALUE_WIDTH: f64 = 80.0;
const BAR_HEIGHT: f64 = 18.0;
const ROW_GAP: f64 = 16.0;
const TITLE_HEIGHT: f64 = 40.0;

/// Colours of the peers' bars, in turn: told apart without red and green, and on light and dark
/// grounds.
const COLOURS: [&str; 4] = ["#0072b2", "#e69f00", "#009e73", "#cc79a7"];

/// The plot. Every row has a scale of its own: its longest run fills it.
pub(crate) fn document(results: &Results) -> String {
    let mut bars = String::new();
    let mut y = TITLE_HEIGHT;
    for row in results.rows() {
        let longest = row.iter().map(|m| m.range().1).fold(0.0, f64::max);
        for (measurement, colour) in row.iter().zip(COLOURS.iter().cycle()) {
            bar(&mut bars, y, measurement, longest, colour);
            y += BAR_HEIGHT;
        }
        y += ROW_GAP;
    }
    let title = escaped(&format!(
        "Seconds, Linux {} (shorter is better)",
        results.setting.guest_kernel
    ));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {y}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"8\" y=\"22\" font-size=\"15\">{title}</text>\n{bars}</svg>\n"
    )
}

fn bar(svg: &mut String, y: f64, measurement: &Measurement, longest: f64, colour: &str) {
    let full = WIDTH - LABEL_WIDTH - VALUE_WIDTH;
    let length = |seconds: f64| {
        if longest > 0.0 {
            seconds / longest * full
        } else {
            0.0
        }
    };
    let label = escaped(&format!("{}: {}", measurement.title(), measurement.peer));
    let (median, text_y) = (measurement.median(), y + 13.0);
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{text_y:.1}\" text-anchor=\"end\">{label}</text>\n\
         <rect x=\"{LABEL_WIDTH:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" \
         fill=\"{colour}\"/>\n\
         <text x=\"{:.1}\" y=\"{text_y:.1}\">{median:.2}</text>",
        LABEL_WIDTH - 8.0,
        y + 1.0,
        length(median),
        BAR_HEIGHT - 2.0,
        WIDTH - VALUE_WIDTH + 8.0,
    );
    for run in &measurement.seconds {
        let x = LABEL_WIDTH + length(*run);
        let (top, bottom) = (y + 3.0, y + BAR_HEIGHT - 3.0);
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{top:.1}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" \
             stroke=\"#000000\"/>"
        );
    }
}

/// `text` as XML's character data.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::super::results::tests::sample;
    use super::*;

    #[test]
    fn bars_are_in_proportion() {
        let svg = document(&sample());
        // Medians of 2 and 4 seconds; the longest run, of 5, fills the 400 pixels there are.
        assert_eq!(svg.matches("width=\"160.0\"").count(), 2);
        assert_eq!(svg.matches("width=\"320.0\"").count(), 2);
        assert_eq!(svg.matches("<line").count(), 12, "a tick for every run");
    }

    #[test]
    fn text_is_escaped() {
        let mut results = sample();
        results.setting.guest_kernel = "<6>&".to_owned();
        assert!(document(&results).contains("Linux &lt;6&gt;&amp; ("));
    }
}
