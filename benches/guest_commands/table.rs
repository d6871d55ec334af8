//! A table that is readable as text and is Markdown.

use std::fmt;

pub(crate) struct Table {
    /// The heading first.
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<const COLUMNS: usize>(heading: [&str; COLUMNS]) -> Self {
        Self { rows: vec![heading.map(str::to_owned).into()] }
    }

    /// Adds a row, which must have as many cells as the heading.
    #[track_caller]
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        assert_eq!(cells.len(), self.rows[0].len());
        self.rows.push(cells);
    }
}

impl fmt::Display for Table {
    /// The first column is aligned at the left, the others, which hold numbers, at the right.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..self.rows[0].len()).map(width).collect();
        for (number, row) in self.rows.iter().enumerate() {
            write!(f, "| {:<1$} |", row[0], widths[0])?;
            for (cell, width) in row.iter().zip(&widths).skip(1) {
                write!(f, " {cell:>width$} |")?;
            }
            writeln!(f)?;
            if number == 0 {
                write!(f, "|-{:-<1$}-|", "", widths[0])?;
                for width in &widths[1..] {
                    write!(f, "-{:->width$}:|", "")?;
                }
                writeln!(f)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(unused, reason = "tests/benchmark.rs runs these; a bench without a harness leaves them out")]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["TPM", "µs"]);
        table.row(vec!["tis".into(), "1200.5".into()]);
        table.row(vec!["crb-doorbell".into(), "–".into()]);
        let text = "\
| TPM          |     µs |
|--------------|-------:|
| tis          | 1200.5 |
| crb-doorbell |      – |
";
        assert_eq!(table.to_string(), text);
    }
}
