//! The results as a plot: `docs/comparison.svg`. A row is a workload, a dot one peer's median as
//! a multiple of the first peer's.

use super::results::Results;
use std::fmt::Write;

/// Sizes in pixels.
const WIDTH: f64 = 760.0;
const LABEL_WIDTH: f64 = 100.0;
const MARGIN: f64 = 20.0;
const HEAD_HEIGHT: f64 = 70.0;
const ROW_HEIGHT: f64 = 20.0;

/// Colours of the peers after the first, in turn: told apart without red and green, and on light
/// and dark grounds.
const COLOURS: [&str; 4] = ["#e69f00", "#0072b2", "#009e73", "#cc79a7"];

/// The plot, on a logarithmic scale.
pub(crate) fn document(results: &Results) -> String {
    let Some((subject, others)) = results.peers.split_first() else {
        return String::new();
    };
    let mut dots = Vec::new();
    for (row, workload) in results.timed().enumerate() {
        for (other, colour) in others.iter().zip(COLOURS.iter().cycle()) {
            if let Some(ratio) = results.ratio(workload.name, &other.id, &subject.id) {
                dots.push((row, ratio, colour));
            }
        }
    }
    let scale = Scale::over(dots.iter().map(|dot| dot.1));
    let rows = results.timed().count();
    let height = HEAD_HEIGHT + ROW_HEIGHT * rows as f64 + MARGIN;
    let middle = |row: usize| HEAD_HEIGHT + ROW_HEIGHT * (row as f64 + 0.5);
    let mut svg = head(results, height);
    for decade in scale.first..=scale.last {
        let (x, bottom) = (scale.x(10f64.powi(decade)), height - MARGIN);
        let label = 10f64.powi(decade);
        let width = if decade == 0 { 2 } else { 1 };
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{HEAD_HEIGHT}\" x2=\"{x:.1}\" y2=\"{bottom}\" \
             stroke=\"#999999\" stroke-width=\"{width}\"/>\n\
             <text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{label}x</text>",
            HEAD_HEIGHT - 6.0,
        );
    }
    for (row, workload) in results.timed().enumerate() {
        let (y, name) = (middle(row) + 4.0, workload.name);
        let x = LABEL_WIDTH - 8.0;
        let _ = writeln!(
            svg,
            "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\">{name}</text>"
        );
    }
    for (row, ratio, colour) in dots {
        let (x, y) = (scale.x(ratio), middle(row));
        let _ = writeln!(
            svg,
            "<circle cx=\"{x:.1}\" cy=\"{y}\" r=\"5\" fill=\"{colour}\"/>"
        );
    }
    svg + "</svg>\n"
}

/// The plot's begin: its ground, its title, and whose dots are whose.
fn head(results: &Results, height: f64) -> String {
    let subject = results.peers.first().map_or("", |peer| &peer.id);
    let kernel = &results.setting.guest_kernel;
    let title = escaped(&format!(
        "Times as multiples of those of {subject}, Linux {kernel}"
    ));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"8\" y=\"20\" font-size=\"15\">{title}</text>\n"
    );
    let others = results.peers.iter().skip(1).zip(COLOURS.iter().cycle());
    for (index, (peer, colour)) in others.enumerate() {
        let x = LABEL_WIDTH + 160.0 * index as f64;
        let _ = writeln!(
            svg,
            "<circle cx=\"{x}\" cy=\"38\" r=\"5\" fill=\"{colour}\"/>\n\
             <text x=\"{}\" y=\"42\">{}</text>",
            x + 10.0,
            escaped(&peer.id)
        );
    }
    svg
}

/// A logarithmic scale over whole decades.
struct Scale {
    first: i32,
    last: i32,
}

impl Scale {
    /// The least one that holds all `values`, and 1.
    fn over(values: impl Iterator<Item = f64>) -> Self {
        let (mut first, mut last) = (0, 0);
        for decade in values.map(f64::log10).filter(|decade| decade.is_finite()) {
            first = first.min(decade.floor() as i32);
            last = last.max(decade.ceil() as i32);
        }
        let last = last.max(first + 1);
        Self { first, last }
    }

    fn x(&self, value: f64) -> f64 {
        let part = (value.log10() - f64::from(self.first)) / f64::from(self.last - self.first);
        LABEL_WIDTH + part * (WIDTH - LABEL_WIDTH - MARGIN)
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
    fn dots_are_at_their_ratios() {
        let svg = document(&sample());
        // From 0.1 to 10 over 640 pixels: QEMU's 4 at log 0.602, native's 0.5 at log -0.301.
        let at = |x: &str| svg.matches(&format!("<circle cx=\"{x}\"")).count();
        assert_eq!((at("612.7"), at("323.7")), (3, 1), "{svg}");
    }

    #[test]
    fn a_scale_holds_all_values() {
        let scale = Scale::over([0.3, 70.0].into_iter());
        assert_eq!((scale.first, scale.last), (-1, 2));
        let alone = Scale::over([f64::NAN].into_iter());
        assert_eq!((alone.first, alone.last), (0, 1));
    }

    #[test]
    fn text_is_escaped() {
        let mut results = sample();
        results.setting.guest_kernel = "<6>&".to_owned();
        assert!(document(&results).contains("Linux &lt;6&gt;&amp;<"));
    }
}
