//! Pictures of a simulation, as SVG written by hand: the few lines and boxes that they are need no library.
//!
//! [`turnaround`]: which part of all invocations was done within which time, a line a policy. [`timeline`]: who ran on
//! which core, a band a policy, short invocations in one colour and long ones in another.

use std::fmt::Write as _;

use spry_sched::sim::Job;

use super::Ran;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 70.0;
const TOP: f64 = 40.0;
const PLOT_HEIGHT: f64 = 420.0;
/// Told apart by most eyes (Okabe, Ito 2008).
const COLOURS: [&str; 8] =
    ["#000000", "#999999", "#56b4e9", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#0072b2"];
const SHORT: &str = "#d55e00";
const LONG: &str = "#56b4e9";
/// A line is drawn through so many quantiles.
const POINTS: usize = 400;
/// A timeline shows so many invocations around the middle of the trace.
const SHOWN: usize = 60;

/// The cumulative distribution of turnarounds, on a logarithmic scale of time.
pub fn turnaround(title: &str, trace: &[Job], ran: &[Ran]) -> String {
    let sorted: Vec<Vec<f64>> = ran
        .iter()
        .map(|ran| {
            let turnarounds = trace.iter().zip(&ran.outcome.finish_ns);
            let mut ms: Vec<f64> =
                turnarounds.map(|(job, end)| ((end - job.arrival_ns) as f64 / 1e6).max(1e-3)).collect();
            ms.sort_by(f64::total_cmp);
            ms
        })
        .collect();
    let ends = |pick: fn(f64, f64) -> f64, at: fn(&Vec<f64>) -> Option<&f64>| {
        sorted.iter().filter_map(at).copied().reduce(pick).unwrap_or(1.0)
    };
    let low = ends(f64::min, |ms| ms.first()).log10().floor();
    let high = ends(f64::max, |ms| ms.last()).log10().ceil().max(low + 1.0);
    let x = |ms: f64| LEFT + (ms.log10() - low) / (high - low) * (WIDTH - LEFT - 150.0);
    let y = |part: f64| TOP + (1.0 - part) * PLOT_HEIGHT;
    let mut svg = head(title, TOP + PLOT_HEIGHT + 50.0);
    for decade in low as i32..=high as i32 {
        let at = x(10f64.powi(decade));
        line(&mut svg, (at, y(0.0)), (at, y(1.0)), "#dddddd");
        text(&mut svg, (at, y(0.0) + 18.0), "middle", &format!("{} ms", 10f64.powi(decade)));
    }
    for tenth in (0..=10).step_by(2) {
        let at = y(f64::from(tenth) / 10.0);
        line(&mut svg, (x(10f64.powf(low)), at), (x(10f64.powf(high)), at), "#dddddd");
        text(&mut svg, (LEFT - 8.0, at + 4.0), "end", &format!("{} %", tenth * 10));
    }
    text(&mut svg, (x(10f64.powf(f64::midpoint(low, high))), y(0.0) + 38.0), "middle", "turnaround");
    for (place, (ran, ms)) in ran.iter().zip(&sorted).enumerate().filter(|(_, (_, ms))| !ms.is_empty()) {
        let colour = COLOURS[place % COLOURS.len()];
        let points = (0..=POINTS).map(|point| {
            let part = point as f64 / POINTS as f64;
            let at = ((part * ms.len() as f64).ceil() as usize).clamp(1, ms.len()) - 1;
            format!("{:.1},{:.1}", x(ms[at]), y(part))
        });
        let points = points.collect::<Vec<_>>().join(" ");
        let _ = writeln!(
            svg,
            r#"<polyline fill="none" stroke="{colour}" stroke-width="1.6" points="{points}"/>"#
        );
        legend(&mut svg, place, colour, ran.name.text());
    }
    svg + "</svg>\n"
}

/// Who ran where, for the time in which some invocations from the middle of the trace came.
pub fn timeline(title: &str, trace: &[Job], ran: &[Ran], cores: usize, short_below_ns: u64) -> String {
    let first = (trace.len() / 2).min(trace.len().saturating_sub(SHOWN));
    let last = (first + SHOWN).min(trace.len()).saturating_sub(1);
    let (from_ns, to_ns) = match (trace.get(first), trace.get(last)) {
        (Some(first), Some(last)) => (first.arrival_ns, last.arrival_ns.max(first.arrival_ns + 1)),
        _ => (0, 1),
    };
    let x = |ns: u64| {
        let part = (ns.clamp(from_ns, to_ns) - from_ns) as f64 / (to_ns - from_ns) as f64;
        LEFT + part * (WIDTH - LEFT - 150.0)
    };
    let (core_height, gap) = (14.0, 16.0);
    let band = core_height * cores as f64 + gap;
    let mut svg = head(title, TOP + band * ran.len() as f64 + 40.0);
    for (place, ran) in ran.iter().enumerate() {
        let top = TOP + band * place as f64;
        text(&mut svg, (LEFT - 8.0, top + (band - gap) / 2.0 + 4.0), "end", ran.name.text());
        for run in ran.outcome.runs.iter().filter(|run| run.to_ns > from_ns && run.from_ns < to_ns) {
            let is_short = trace[run.job as usize].cpu_ns() < short_below_ns;
            let colour = if is_short { SHORT } else { LONG };
            let (left, right) = (x(run.from_ns), x(run.to_ns));
            let top = top + core_height * f64::from(run.core);
            let _ = writeln!(
                svg,
                r#"<rect x="{left:.2}" y="{top:.1}" width="{:.2}" height="{:.1}" fill="{colour}"/>"#,
                (right - left).max(0.3),
                core_height - 2.0
            );
        }
    }
    let bottom = TOP + band * ran.len() as f64 + 8.0;
    for part in 0..=4u64 {
        let ns = from_ns + (to_ns - from_ns) / 4 * part;
        text(&mut svg, (x(ns), bottom + 8.0), "middle", &format!("{:.2} s", ns as f64 / 1e9));
    }
    for (place, (colour, label)) in [(SHORT, "short"), (LONG, "long")].into_iter().enumerate() {
        legend(&mut svg, place, colour, label);
    }
    svg + "</svg>\n"
}

fn head(title: &str, height: f64) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(&mut svg, (LEFT, 22.0), "start", title);
    svg
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    // Writing to a String cannot fail.
    let _ = writeln!(svg, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#);
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
    let _ = writeln!(svg, r#"<line x1="{x1:.1}" y1="{y1:.1}" x2="{x2:.1}" y2="{y2:.1}" stroke="{colour}"/>"#);
}

fn legend(svg: &mut String, place: usize, colour: &str, label: &str) {
    let y = TOP + 10.0 + 20.0 * place as f64;
    let _ = writeln!(
        svg,
        r#"<rect x="{:.1}" y="{:.1}" width="14" height="10" fill="{colour}"/>"#,
        WIDTH - 120.0,
        y - 9.0
    );
    text(svg, (WIDTH - 100.0, y), "start", label);
}

#[cfg(test)]
mod tests {
    use super::super::Name;
    use super::super::tally::Tally;
    use super::*;
    use spry_sched::FunctionId;
    use spry_sched::sim::{Fifo, Machine};

    fn drawn(trace: &[Job]) -> [String; 2] {
        let machine = Machine { record: true, ..Machine::new(2) };
        let outcome = machine.run(trace, &mut Fifo::default()).unwrap();
        let ran = [Ran { name: Name::Fifo, tally: Tally::of(trace, &outcome, 50), outcome }];
        [turnaround("a < b & c", trace, &ran), timeline("a < b & c", trace, &ran, 2, 50)]
    }

    fn trace(jobs: u64) -> Vec<Job> {
        let job = |place| Job {
            arrival_ns: place * 30,
            function: FunctionId(0),
            size_bytes: None,
            bursts_ns: vec![1 + place % 2 * 99],
        };
        (0..jobs).map(job).collect()
    }

    /// Every element is closed, nothing unescaped, no coordinate that isn't a number.
    fn assert_sound(svg: &str) {
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"), "{svg}");
        for line in svg.lines().skip(1).filter(|line| *line != "</svg>") {
            assert!(line.starts_with('<') && (line.ends_with("/>") || line.ends_with("</text>")), "{line}");
            assert!(!line.contains("NaN") && !line.contains("inf"), "{line}");
        }
        assert!(svg.contains("a &lt; b &amp; c"));
    }

    #[test]
    fn pictures_are_sound_also_of_next_to_nothing() {
        for jobs in [0, 1, 2, 500] {
            drawn(&trace(jobs)).iter().for_each(|svg| assert_sound(svg));
        }
    }

    #[test]
    fn both_classes_and_every_policy_are_there() {
        let [turnaround, timeline] = drawn(&trace(500));
        assert!(turnaround.contains("<polyline") && turnaround.contains(">fifo</text>"));
        assert!(timeline.matches(SHORT).count() > 10 && timeline.matches(LONG).count() > 10);
    }
}
