//! What a benchmark comes to: rows, printed as a table and written as JSON.
//!
//! A row is `{"bench","case","metric","value","unit","baseline","ratio"}`; `ratio` is `value / baseline`, both of
//! the same run. A row that has a bar to pass also carries `bar` (as text) and `met`; one that was measured in
//! several rounds also `spread`, the smallest and largest of the rounds' own ratios (or values, without a baseline):
//! the noise.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bar {
    /// `value / baseline` at most this.
    RatioAtMost(f64),
    /// `value / baseline` at least this.
    RatioAtLeast(f64),
    /// `value` at most this.
    AtMost(f64),
    /// `value` at least this.
    AtLeast(f64),
}

impl std::fmt::Display for Bar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RatioAtMost(bound) => write!(f, "<= {bound}x"),
            Self::RatioAtLeast(bound) => write!(f, ">= {bound}x"),
            Self::AtMost(bound) => write!(f, "<= {bound}"),
            Self::AtLeast(bound) => write!(f, ">= {bound}"),
        }
    }
}

/// One measured number.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Which benchmark.
    pub bench: &'static str,
    /// Which of its cases.
    pub case: String,
    /// What was measured.
    pub metric: &'static str,
    /// The number.
    pub value: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The same number of what it is compared with.
    pub baseline: Option<f64>,
    /// `value / baseline`.
    pub ratio: Option<f64>,
    /// What it must be.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    pub bar: Option<Bar>,
    /// Whether it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub met: Option<bool>,
    /// Smallest and largest among the rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<(f64, f64)>,
    /// Left out of the table unless it misses its bar.
    #[serde(skip)]
    pub detail: bool,
}

fn as_text<S: serde::Serializer>(bar: &Option<Bar>, serializer: S) -> Result<S::Ok, S::Error> {
    match bar {
        Some(bar) => serializer.collect_str(bar),
        None => serializer.serialize_none(),
    }
}

impl Row {
    /// A number by itself.
    pub fn new(
        bench: &'static str,
        case: impl Into<String>,
        metric: &'static str,
        value: f64,
        unit: &'static str,
    ) -> Self {
        let case = case.into();
        Self {
            bench,
            case,
            metric,
            value,
            unit,
            baseline: None,
            ratio: None,
            bar: None,
            met: None,
            spread: None,
            detail: false,
        }
    }

    /// Compares it.
    pub fn against(mut self, baseline: f64) -> Self {
        self.baseline = Some(baseline);
        // JSON has no infinity: nothing can be said of a baseline of 0.
        self.ratio = Some(self.value / baseline).filter(|ratio| ratio.is_finite());
        self
    }

    /// Sets what it must be; call after [`against`](Self::against).
    pub fn must(mut self, bar: Bar) -> Self {
        self.bar = Some(bar);
        self.met = Some(match (bar, self.ratio) {
            (Bar::AtMost(bound), _) => self.value <= bound,
            (Bar::AtLeast(bound), _) => self.value >= bound,
            (Bar::RatioAtMost(bound), Some(ratio)) => ratio <= bound,
            (Bar::RatioAtLeast(bound), Some(ratio)) => ratio >= bound,
            (Bar::RatioAtMost(_) | Bar::RatioAtLeast(_), None) => false,
        });
        self
    }

    /// Whether the table has it even if it misses no bar.
    pub fn shown(mut self, shown: bool) -> Self {
        self.detail = !shown;
        self
    }

    /// Notes the noise.
    pub fn spread(mut self, values: impl IntoIterator<Item = f64>) -> Self {
        let ends =
            values.into_iter().filter(|value| value.is_finite()).fold(None, |ends, value| match ends {
                None => Some((value, value)),
                Some((low, high)) => Some((f64::min(low, value), f64::max(high, value))),
            });
        self.spread = ends;
        self
    }
}

/// The rows as an aligned table.
pub fn table(rows: &[Row]) -> String {
    let header = ["case", "metric", "value", "unit", "baseline", "ratio", "spread", "bar", ""];
    let shown = rows.iter().filter(|row| !row.detail || row.met == Some(false)).map(line);
    let lines: Vec<[String; 9]> = std::iter::once(header.map(str::to_owned)).chain(shown).collect();
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    for line in &lines {
        let mut row = String::new();
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            // Text to the left, numbers to the right. Writing to a String cannot fail.
            let _ = match column {
                0 | 1 | 3 | 7 | 8 => write!(row, "{cell:<width$}  "),
                _ => write!(row, "{cell:>width$}  "),
            };
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

fn line(row: &Row) -> [String; 9] {
    let ratio = |ratio: f64| format!("{ratio:.2}x");
    [
        row.case.clone(),
        row.metric.to_owned(),
        number(row.value),
        row.unit.to_owned(),
        row.baseline.map_or(String::new(), number),
        row.ratio.map_or(String::new(), ratio),
        row.spread.map_or(String::new(), |(low, high)| match row.baseline {
            Some(_) => format!("{low:.2}-{high:.2}"),
            None => format!("{}-{}", number(low), number(high)),
        }),
        row.bar.map_or(String::new(), |bar| bar.to_string()),
        row.met.map_or(String::new(), |met| if met { "met" } else { "NOT MET" }.to_owned()),
    ]
}

/// Whole numbers whole and with thousands apart, small ones with the digits that matter.
fn number(value: f64) -> String {
    if value.fract() != 0.0 && value.abs() < 1000.0 {
        return if value.abs() < 10.0 { format!("{value:.2}") } else { format!("{value:.1}") };
    }
    let digits = format!("{:.0}", value.abs());
    let mut grouped = String::from(if value < 0.0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// Writes the rows as a JSON array.
pub fn write_json(path: &Path, rows: &[Row]) -> std::io::Result<()> {
    let mut text = serde_json::to_string_pretty(rows)?;
    text.push('\n');
    std::fs::write(path, text)
}

/// The middle value; of an even count the mean of the two middle ones. NaN of nothing.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

/// Where the median of what these are a sample of lies, with a confidence of 95 % or a little more: two of the values, by the
/// binomial distribution of how many lie below it (in its normal approximation). Of few values, the outermost.
pub fn median_interval(values: &[f64]) -> [f64; 2] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return [f64::NAN; 2] };
    let count = sorted.len() as f64;
    let below = ((count - 1.96 * count.sqrt()) / 2.0).floor().max(0.0) as usize;
    [sorted[below], sorted[last - below]]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Row {
        Row::new("http", "native nop c1", "p50", 70.0, "us").against(50.0)
    }

    #[test]
    fn json_has_the_contract_s_keys() {
        let value = serde_json::to_value([row()]).unwrap();
        let expect = serde_json::json!([{ "bench": "http", "case": "native nop c1", "metric": "p50", "value": 70.0,
            "unit": "us", "baseline": 50.0, "ratio": 1.4 }]);
        assert_eq!(value, expect);
        let value =
            serde_json::to_value(Row::new("soak", "nop", "errors", 0.0, "").must(Bar::AtMost(0.0))).unwrap();
        let expect = serde_json::json!({ "bench": "soak", "case": "nop", "metric": "errors", "value": 0.0,
            "unit": "", "baseline": null, "ratio": null, "bar": "<= 0", "met": true });
        assert_eq!(value, expect);
    }

    #[test]
    fn bars_include_their_bound() {
        for (bar, met) in [
            (Bar::RatioAtMost(1.4), true),
            (Bar::RatioAtMost(1.39), false),
            (Bar::RatioAtLeast(1.4), true),
            (Bar::RatioAtLeast(1.41), false),
            (Bar::AtMost(70.0), true),
            (Bar::AtMost(69.9), false),
            (Bar::AtLeast(70.0), true),
            (Bar::AtLeast(70.1), false),
        ] {
            assert_eq!(row().must(bar).met, Some(met), "{bar}");
        }
        // A baseline of 0 makes no ratio, and no ratio passes no bar.
        let odd = Row::new("http", "x", "p50", 1.0, "us").against(0.0).must(Bar::RatioAtMost(9.0));
        assert_eq!((odd.ratio, odd.met), (None, Some(false)));
    }

    #[test]
    fn the_table_is_aligned_and_says_what_was_missed() {
        let rows = [
            row().spread([1.3, 1.5, f64::NAN]).must(Bar::RatioAtMost(1.3)),
            Row::new("http", "floor nop c32", "requests", 142_000.4, "1/s").spread([1.0, 2.5]),
            Row::new("http", "floor nop c32", "failures", 0.0, "").must(Bar::AtMost(0.0)).shown(false),
        ];
        let expect = "\
case           metric      value  unit  baseline  ratio     spread  bar      \n\
native nop c1  p50            70  us          50  1.40x  1.30-1.50  <= 1.3x  NOT MET\n\
floor nop c32  requests  142,000  1/s                       1-2.50\n";
        assert_eq!(table(&rows), expect.replace("bar      \n", "bar\n"));
    }

    #[test]
    fn numbers_are_grouped() {
        let cases = [(0.0, "0"), (-1234.0, "-1,234"), (0.256, "0.26"), (99.94, "99.9"), (1e6, "1,000,000")];
        for (value, text) in cases {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn the_median_ignores_the_outlier() {
        assert_eq!(median(&[9.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[1.0, 2.0]), 1.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn the_medians_interval_is_that_of_the_tables() {
        let of = |count: u32| median_interval(&(1..=count).rev().map(f64::from).collect::<Vec<_>>());
        // Ranks from tables of the sign test: of 40 values the 14th and the 27th have 96 %, of 10 the second and the ninth 98 %.
        assert_eq!((of(40), of(10)), ([14.0, 27.0], [2.0, 9.0]));
        assert_eq!((of(3), of(1)), ([1.0, 3.0], [1.0, 1.0]));
        assert!(median_interval(&[]).iter().all(|end| end.is_nan()));
    }
}
