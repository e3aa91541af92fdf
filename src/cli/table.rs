//! Tables for the user, with columns as wide as their content.
//!
//! Cells hold foreign text: of any length, in any script. So a cell is one line, cut if it is absurdly long,
//! and a column is never padded beyond [`WIDEST`]: a cell that is longer moves only the rest of its own row.
//! On a terminal the longest columns are cut until every line fits; elsewhere nothing is cut for that.

use std::io::{self, Write};

use super::log::Verbosity;
use super::printable::{self, LONGEST_SHOWN, columns, cut, fitted, padded, terminal_width};

/// Widest column that the cells of other rows are padded to, in columns of a terminal.
const WIDEST: usize = 120;
/// Blanks between two columns.
const GAP: usize = 2;
/// Narrowest width that a column is cut to as long as another one can be cut.
const NARROWEST: usize = 6;

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

    /// Prints the table on stdout, as wide as the terminal. Without rows it prints `nothing` on stderr
    /// instead, so that an empty list is no silence.
    pub fn print(&self, nothing: &str, verbosity: Verbosity) -> io::Result<()> {
        if !self.rows.is_empty() {
            return self.write(&mut printable::out(), terminal_width());
        }
        if verbosity == Verbosity::Quiet {
            return Ok(());
        }
        writeln!(printable::err(), "{nothing}")
    }

    /// Writes the table, with lines of at most `most` columns.
    pub fn write(&self, to: &mut impl Write, most: Option<usize>) -> io::Result<()> {
        let widths = self.widths(most);
        let line = |cells: Vec<&str>, to: &mut dyn Write| {
            let cells = cells.iter().zip(&widths).map(|(cell, &width)| match most {
                Some(_) => padded(&fitted(cell, width), width),
                None => padded(cell, width),
            });
            let line = cells.collect::<Vec<String>>().join(&" ".repeat(GAP));
            // Where even the narrowest columns are too many, the rest of the line is cut.
            writeln!(to, "{}", most.map_or(line.as_str().into(), |most| fitted(&line, most)).trim_end())
        };
        line(self.headings.clone(), to)?;
        self.rows.iter().try_for_each(|row| line(row.iter().map(String::as_str).collect(), to))
    }

    /// Returns the widths of the columns. If they are too many for a line of `most`, the widest of them is
    /// narrowed until all fit. The first column, which the user has to type, comes last.
    fn widths(&self, most: Option<usize>) -> Vec<usize> {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column)).map(|cell| columns(cell));
            let widest = cells.chain([self.headings[column].len()]).max().unwrap_or(0);
            if most.is_some() { widest } else { widest.min(WIDEST) }
        };
        let mut widths: Vec<usize> = (0..self.headings.len()).map(width).collect();
        let gaps = GAP * widths.len().saturating_sub(1);
        let Some(room) = most.map(|most| most.saturating_sub(gaps)) else { return widths };
        for (first, narrowest) in [(1, NARROWEST), (0, NARROWEST), (0, 1)] {
            let others = widths[..first.min(widths.len())].iter().sum();
            narrow(&mut widths[first..], room.saturating_sub(others), narrowest);
        }
        widths
    }
}

/// Narrows the widest columns until their sum is at most `room`, but none below `narrowest`.
fn narrow(widths: &mut [usize], room: usize, narrowest: usize) {
    while widths.iter().sum::<usize>() > room {
        // Of equally wide columns the last one is narrowed.
        let Some(widest) = widths.iter_mut().max_by_key(|width| **width).filter(|width| **width > narrowest)
        else {
            return;
        };
        *widest -= 1;
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
        table.write(&mut text, None).expect("written");
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

    fn lines(table: &Table, most: usize) -> Vec<String> {
        let mut text = Vec::new();
        table.write(&mut text, Some(most)).expect("written");
        String::from_utf8(text).expect("UTF-8").lines().map(str::to_owned).collect()
    }

    #[test]
    fn the_longest_column_is_cut_and_the_first_one_last() {
        let mut table = Table::new(&["job", "server", "error"]);
        table.row(vec!["01kb3v9w6rj0".into(), "web01".into(), "the volume can't be attached".into()]);
        assert_eq!(lines(&table, 40)[1], "01kb3v9w6rj0  web01   the volume can't …");
        assert_eq!(lines(&table, 28)[1], "01kb3v9w6rj0  web01   the v…");
        assert_eq!(lines(&table, 20)[1], "01kb3…  web01  the …");
        assert_eq!(lines(&table, 8)[1], "0…  …  …");
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let mut table = Table::new(&["name", "state", "tags", "why"]);
        table.row(vec!["サーバー・データベース".into(), "available".into(), "👩‍💻 🚀".into(), "é".repeat(300)]);
        table.row(vec!["x\u{1b}[2J\u{202e}y".into(), "pending".into(), "漢".repeat(90), String::new()]);
        for most in 1..=200 {
            for line in lines(&table, most) {
                assert!(columns(&line) <= most, "{most}: {} in {line:?}", columns(&line));
            }
        }
    }

    /// Rust's own padding ends at 65,535 columns.
    #[test]
    fn one_cell_that_is_long_or_hostile_is_its_own_rows_affair() {
        let mut table = Table::new(&["server", "state"]);
        table.row(vec!["a".repeat(70_000), "ready".into()]);
        table.row(vec!["x\u{1b}[2J\ry".into(), "done".into()]);
        let mut text = Vec::new();
        table.write(&mut text, None).expect("written");
        let text = String::from_utf8(text).expect("UTF-8");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[1], format!("{}…  ready", "a".repeat(LONGEST_SHOWN - 1)));
        assert_eq!(lines[2], format!("{}  done", padded(r"x\u{1b}[2J\ry", WIDEST)));
        let mut text = Vec::new();
        pairs(&[("server", "x\u{1b}c".into())], &mut text).expect("written");
        assert_eq!(text, b"server  x\\u{1b}c\n");
    }
}
