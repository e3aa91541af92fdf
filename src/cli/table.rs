//! Tables for the user, with columns as wide as their content.
//!
//! Cells hold foreign text: of any length, in any script. So a cell is one line, cut if it is absurdly long,
//! and a column is never padded beyond [`WIDEST`]: a cell that is longer moves only the rest of its own row.

use std::io::{self, Write};

use super::printable::{LONGEST_SHOWN, columns, cut, padded};

/// Widest column that the cells of other rows are padded to, in columns of a terminal.
const WIDEST: usize = 120;

/// Table with a line of headings.
pub struct Table {
    headings: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub fn new(headings: &[&'static str]) -> Self {
        Self { headings: headings.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. An empty cell is shown as a dash, and a cell of several lines as the first of them.
    pub fn row(&mut self, cells: Vec<String>) {
        let shown = |cell: &String| match first_line(cell) {
            "" => "-".to_owned(),
            line => cut(line, LONGEST_SHOWN).into_owned(),
        };
        self.rows.push(cells.iter().map(shown).collect());
    }

    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| columns(cell));
            cells.chain([self.headings[column].len()]).max().unwrap_or(0).min(WIDEST)
        };
        let widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let line = |cells: Vec<&str>, to: &mut dyn Write| {
            let padded: Vec<String> =
                cells.iter().zip(&widths).map(|(cell, &width)| padded(cell, width)).collect();
            writeln!(to, "{}", padded.join("  ").trim_end())
        };
        line(self.headings.clone(), to)?;
        self.rows.iter().try_for_each(|row| line(row.iter().map(String::as_str).collect(), to))
    }
}

/// Returns the first line of an error's text, which is what is wrong; the lines after it are what to do about
/// it.
pub fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Writes `name  value` lines with the values, and all lines of each value, below one another.
pub fn pairs(pairs: &[(&str, String)], to: &mut impl Write) -> io::Result<()> {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    pairs.iter().try_for_each(|(name, value)| {
        let mut lines = value.lines();
        writeln!(to, "{}  {}", padded(name, width), cut(lines.next().unwrap_or("-"), LONGEST_SHOWN))?;
        lines.try_for_each(|more| writeln!(to, "{}  {}", padded("", width), cut(more, LONGEST_SHOWN)))
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
        table.row(vec!["サーバー".into(), "pending".into()]);
        let mut text = Vec::new();
        table.write(&mut text).expect("written");
        let text = String::from_utf8(text).expect("UTF-8");
        assert_eq!(
            text,
            "name          state\nweb01-latest  available\nü             -\nサーバー      pending\n"
        );
        let mut text = Vec::new();
        pairs(
            &[("state", "dead".into()), ("error", "no\ndo this".into()), ("step", String::new())],
            &mut text,
        )
        .expect("written");
        assert_eq!(
            String::from_utf8(text).expect("UTF-8"),
            "state  dead\nerror  no\n       do this\nstep   -\n"
        );
    }

    /// Rust's own padding ends at 65,535 columns.
    #[test]
    fn one_cell_that_is_long_or_hostile_is_its_own_rows_affair() {
        let mut table = Table::new(&["server", "state"]);
        table.row(vec!["a".repeat(70_000), "ready".into()]);
        table.row(vec!["x\u{1b}[2J\ry".into(), "done".into()]);
        let mut text = Vec::new();
        table.write(&mut text).expect("written");
        let text = String::from_utf8(text).expect("UTF-8");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], format!("{}…  ready", "a".repeat(LONGEST_SHOWN - 1)));
        assert_eq!(lines[2], format!("{}  done", padded(r"x\u{1b}[2J\ry", WIDEST)));
        let mut text = Vec::new();
        pairs(&[("server", "x\u{1b}c".into())], &mut text).expect("written");
        assert_eq!(text, b"server  x\\u{1b}c\n");
    }
}
