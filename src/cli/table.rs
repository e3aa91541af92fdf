//! Tables for people: columns as wide as what is in them.

use std::io::{self, Write};

/// Rows under headings.
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row; what is empty is shown as a dash, and of several lines the first.
    pub fn row(&mut self, cells: Vec<String>) {
        self.rows.push(
            cells.iter().map(|cell| Some(first_line(cell)).filter(|line| !line.is_empty()).unwrap_or("-").to_owned()).collect(),
        );
    }

    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([self.headings[column].len()]).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let line = |cells: Vec<&str>, to: &mut dyn Write| {
            let padded: Vec<String> = cells.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}")).collect();
            writeln!(to, "{}", padded.join("  ").trim_end())
        };
        line(self.headings.clone(), to)?;
        self.rows.iter().try_for_each(|row| line(row.iter().map(String::as_str).collect(), to))
    }
}

/// What is wrong, without what to do about it.
pub fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// `name  value` lines, with the names one below the other, and so the lines of a value.
pub fn pairs(pairs: &[(&str, String)], to: &mut impl Write) -> io::Result<()> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().try_for_each(|(name, value)| {
        let mut lines = value.lines();
        writeln!(to, "{name:width$}  {}", lines.next().unwrap_or("-"))?;
        lines.try_for_each(|line| writeln!(to, "{:width$}  {line}", ""))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["name", "state"]);
        table.row(vec!["web01-latest".into(), "available".into()]);
        table.row(vec!["ü\nand more".into(), String::new()]);
        let mut text = Vec::new();
        table.write(&mut text).expect("written");
        let text = String::from_utf8(text).expect("UTF-8");
        assert_eq!(text, "name          state\nweb01-latest  available\nü             -\n");
        let mut text = Vec::new();
        pairs(&[("state", "dead".into()), ("error", "no\ndo this".into()), ("step", String::new())], &mut text).expect("written");
        assert_eq!(String::from_utf8(text).expect("UTF-8"), "state  dead\nerror  no\n       do this\nstep   -\n");
    }
}
