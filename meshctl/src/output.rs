//! How results are shown: tables for a person, JSON or YAML for a program.

use std::io::{self, IsTerminal as _, Write};

use serde::Serialize;

/// Which form.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// For a person.
    #[default]
    Table,
    /// For a program.
    Json,
    /// For either.
    Yaml,
}

/// A colour of a terminal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Colour {
    /// It works.
    Green,
    /// It works, but.
    Yellow,
    /// It does not work.
    Red,
}

impl Colour {
    fn code(self) -> &'static str {
        match self {
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Red => "31",
        }
    }
}

/// The text without what moves the cursor: what comes from a cluster must not.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// The text in a colour, where there are colours.
pub fn paint(text: &str, colour: Colour, colours: bool) -> String {
    if colours { format!("\u{1b}[{}m{text}\u{1b}[0m", colour.code()) } else { text.to_owned() }
}

/// A cell of a table.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cell {
    text: String,
    colour: Option<Colour>,
}

impl Cell {
    /// With a colour, where there are colours.
    pub fn coloured(text: impl Into<String>, colour: Colour) -> Self {
        Cell { colour: Some(colour), ..Cell::from(text.into()) }
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Cell { text: printable(&text), colour: None }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Cell::from(text.to_owned())
    }
}

/// Rows under a head, in columns as wide as their widest cell; the last column is as long as it likes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Table {
    head: Vec<&'static str>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// An empty table.
    pub fn new<const N: usize>(head: [&'static str; N]) -> Self {
        Table { head: head.into(), rows: Vec::new() }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = Cell>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// Whether it has no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text.
    pub fn render(&self, colours: bool) -> String {
        let head: Vec<Cell> = self.head.iter().map(|text| Cell::from(*text)).collect();
        let lines = || std::iter::once(&head).chain(&self.rows);
        let width = |column: usize| lines().filter_map(|cells| cells.get(column)).map(|cell| cell.text.chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.head.len()).map(width).collect();
        let mut text = String::new();
        for cells in lines() {
            let mut line = String::new();
            for (column, (cell, width)) in cells.iter().zip(&widths).enumerate() {
                let last = column + 1 == cells.len();
                match cell.colour {
                    Some(colour) => line.push_str(&paint(&cell.text, colour, colours)),
                    None => line.push_str(&cell.text),
                }
                if !last {
                    line.push_str(&" ".repeat(width.saturating_sub(cell.text.chars().count()) + 2));
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Where results go.
#[derive(Clone, Copy, Debug)]
pub struct Output {
    /// The form.
    pub format: Format,
    /// Whether a person's terminal reads along.
    pub colours: bool,
}

impl Output {
    /// Colours only on a terminal, and not against the person's will (<https://no-color.org>).
    pub fn new(format: Format) -> Self {
        Output { format, colours: io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()) }
    }

    /// Writes a value: for a person what `table` makes of it.
    ///
    /// # Errors
    /// Standard output is closed.
    pub fn show<T: Serialize + ?Sized>(&self, value: &T, table: impl FnOnce() -> String) -> anyhow::Result<()> {
        let text = match self.format {
            Format::Table => table(),
            Format::Json => serde_json::to_string_pretty(value)? + "\n",
            Format::Yaml => serde_yaml_ng::to_string(value)?,
        };
        io::stdout().lock().write_all(text.as_bytes())?;
        Ok(())
    }
}

/// What goes on, on standard error: one line that changes on a terminal, else a line a change.
pub struct Progress {
    terminal: bool,
    last: String,
}

impl Progress {
    /// Nothing yet.
    pub fn new() -> Self {
        Progress { terminal: io::stderr().is_terminal(), last: String::new() }
    }

    /// Says it, unless it is what was said last.
    pub fn say(&mut self, text: &str) {
        if text == self.last {
            return;
        }
        let line = if self.terminal { format!("\r\u{1b}[K{text}") } else { format!("{text}\n") };
        // Whoever closed standard error wants no progress.
        let _ = io::stderr().lock().write_all(line.as_bytes());
        text.clone_into(&mut self.last);
    }

    /// Ends the line.
    pub fn done(self) {
        if self.terminal && !self.last.is_empty() {
            eprintln!();
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
