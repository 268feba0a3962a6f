//! The table: what was measured, against what, and whether it holds.

use std::fmt::Write as _;

use serde::Serialize;

/// A bound for a figure.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// At most this.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

impl Bound {
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtMost(bound) => figure <= bound,
            Self::AtLeast(bound) => figure >= bound,
        }
    }

    fn text(self) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {bound}"),
            Self::AtLeast(bound) => format!("≥ {bound}"),
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub case: String,
    /// The figure.
    pub figure: f64,
    /// Its unit.
    pub unit: &'static str,
    /// The figure of the baseline.
    pub baseline: Option<f64>,
    /// Figure by baseline.
    pub ratio: Option<f64>,
    /// What must hold: for the ratio where there is one, else for the figure.
    pub must: Option<Bound>,
    /// What should hold.
    pub goal: Option<Bound>,
    /// What else there is to say.
    pub note: String,
}

impl Row {
    /// A figure that is judged by itself.
    pub fn figure(case: impl Into<String>, figure: f64, unit: &'static str) -> Self {
        Self {
            case: case.into(),
            figure,
            unit,
            baseline: None,
            ratio: None,
            must: None,
            goal: None,
            note: String::new(),
        }
    }

    /// A figure that is judged by its ratio to a baseline.
    pub fn against(case: impl Into<String>, figure: f64, unit: &'static str, baseline: f64, ratio: f64) -> Self {
        Self { baseline: Some(baseline), ratio: Some(ratio), ..Self::figure(case, figure, unit) }
    }

    /// With bounds.
    pub fn bounds(mut self, must: Bound, goal: Bound) -> Self {
        (self.must, self.goal) = (Some(must), Some(goal));
        self
    }

    /// With a bound that has no goal beyond it.
    pub fn must(mut self, must: Bound) -> Self {
        self.must = Some(must);
        self
    }

    /// With a note.
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = note.into();
        self
    }

    /// Whether what must hold does.
    pub fn passes(&self) -> bool {
        let judged = self.ratio.unwrap_or(self.figure);
        self.must.is_none_or(|must| must.holds(judged))
    }

    fn verdict(&self) -> &'static str {
        let judged = self.ratio.unwrap_or(self.figure);
        match (self.must, self.goal) {
            (None, _) => "",
            (Some(must), _) if !must.holds(judged) => "FAIL",
            (Some(_), Some(goal)) if goal.holds(judged) => "goal",
            (Some(_), _) => "ok",
        }
    }

    fn cells(&self) -> [String; 8] {
        let bound = |bound: Option<Bound>| bound.map(Bound::text).unwrap_or_default();
        [
            self.case.clone(),
            format!("{} {}", number(self.figure), self.unit),
            self.baseline.map(number).unwrap_or_default(),
            self.ratio.map(|ratio| format!("{ratio:.3}")).unwrap_or_default(),
            bound(self.must),
            bound(self.goal),
            self.verdict().to_owned(),
            self.note.clone(),
        ]
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1_000.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

/// The rows as a table in Markdown.
pub fn table(rows: &[Row]) -> String {
    let head = ["case", "figure", "baseline", "ratio", "must", "goal", "pass", "note"].map(str::to_owned);
    let lines: Vec<[String; 8]> = std::iter::once(head).chain(rows.iter().map(Row::cells)).collect();
    let width = |column: usize| {
        lines.iter().map(|line| line.get(column).map_or(0, |cell| cell.chars().count())).max().unwrap_or(0)
    };
    let mut text = String::new();
    for (at, line) in lines.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            let _infallible = write!(text, "| {cell:<width$} ", width = width(column));
        }
        text.push_str("|\n");
        if at == 0 {
            (0..line.len()).for_each(|column| text.push_str(&format!("|-{}-", "-".repeat(width(column)))));
            text.push_str("|\n");
        }
    }
    text
}

/// The middle one of some figures.
pub fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_judged_by_their_ratio_where_there_is_one() {
        let row = Row::against("a", 30.0, "1/s", 100.0, 0.3).bounds(Bound::AtLeast(0.25), Bound::AtLeast(0.5));
        assert_eq!((row.passes(), row.verdict()), (true, "ok"));
        let row = Row::figure("b", 13.0, "KB").bounds(Bound::AtMost(12.0), Bound::AtMost(8.0));
        assert_eq!((row.passes(), row.verdict()), (false, "FAIL"));
        assert_eq!(Row::figure("c", 8.0, "KB").bounds(Bound::AtMost(12.0), Bound::AtMost(8.0)).verdict(), "goal");
        assert!(
            Row::figure("d", 1.0, "").passes() && !Row::figure("e", f64::NAN, "").must(Bound::AtMost(1.0)).passes()
        );
    }

    #[test]
    fn columns_are_aligned() {
        let text = table(&[Row::figure("long name", 1234.5, "1/s"), Row::figure("µ", 0.5, "ms").note("x")]);
        let widths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert!(widths.windows(2).all(|pair| pair[0] == pair[1]), "{text}");
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
    }
}
