//! Where output goes: standard output for answers, standard error for everything said about them.
//!
//! Text from the mesh is other people's text: before it reaches a terminal it passes [`clean`],
//! so that no log line or peer name can move the cursor or recolour the screen.

use std::{
    borrow::Cow,
    fmt::Display,
    io::{self, IsTerminal, Read, Write},
};

use comfy_table::{Attribute, Cell, CellAlignment, Color, presets};
use serde_json::{Value, json};

use crate::failed::{Exit, Failed};

/// Standard input, output and error, or what stands in for them.
pub struct Terminal {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    input: Option<Box<dyn Read + Send>>,
    /// Whether standard output is a terminal that shows colours.
    pub colour: bool,
    /// Whether somebody watches standard error.
    pub watched: bool,
    progress_shown: bool,
}

impl Terminal {
    /// The process's own; colours only on a terminal, and not where `NO_COLOR` is set.
    pub fn of_process() -> Self {
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
            || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            input: Some(Box::new(io::stdin())),
            colour: io::stdout().is_terminal() && !plain,
            watched: io::stderr().is_terminal(),
            progress_shown: false,
        }
    }

    /// One that reads and writes elsewhere, without colours.
    #[cfg(test)]
    pub fn to(out: Box<dyn Write>, err: Box<dyn Write>, input: Box<dyn Read + Send>) -> Self {
        Self { out, err, input: Some(input), colour: false, watched: false, progress_shown: false }
    }

    /// Standard input, once.
    pub fn take_input(&mut self) -> Box<dyn Read + Send> {
        self.input.take().unwrap_or_else(|| Box::new(io::empty()))
    }

    /// Prints one answer, and a line end where it has none.
    pub fn print(&mut self, text: &str) -> Result<(), Failed> {
        self.end_progress();
        let end = if text.ends_with('\n') { "" } else { "\n" };
        let written = write!(self.out, "{text}{end}").and_then(|()| self.out.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Failed::reader_gone(),
            _ => Failed::new(format!("standard output cannot be written: {error}")),
        })
    }

    /// Prints one JSON document.
    pub fn json(&mut self, document: &Value) -> Result<(), Failed> {
        self.print(&format!("{document:#}"))
    }

    /// Says something beside the answer. That nobody can hear it is no failure.
    pub fn note(&mut self, text: impl Display) {
        self.end_progress();
        let _ = writeln!(self.err, "{text}");
    }

    /// Says what is being waited for, on one line that the next one replaces; only where somebody
    /// watches.
    pub fn progress(&mut self, text: &str) {
        if self.watched {
            let _ = write!(self.err, "\r\x1b[2K{}", clean(text)).and_then(|()| self.err.flush());
            self.progress_shown = true;
        }
    }

    fn end_progress(&mut self) {
        if std::mem::take(&mut self.progress_shown) {
            let _ = write!(self.err, "\r\x1b[2K").and_then(|()| self.err.flush());
        }
    }

    /// Tells why a command failed.
    pub fn failed(&mut self, failed: &Failed, json: bool) {
        if failed.message.is_empty() {
            self.end_progress();
            return;
        }
        if json {
            let error = json!({"error": {
                "exit_code": failed.exit as u8,
                "kind": kind(failed.exit),
                "message": failed.message,
                "hint": failed.hint,
                "grpc_code": failed.code,
            }});
            self.note(error);
            return;
        }
        self.note(clean_lines(&failed.message));
        if let Some(hint) = &failed.hint {
            self.note(format_args!("hint: {hint}"));
        }
    }
}

fn kind(exit: Exit) -> &'static str {
    match exit {
        Exit::Ok => "none",
        Exit::Failed => "failed",
        Exit::Usage => "usage",
        Exit::Unreachable => "node_unreachable",
        Exit::NotFound => "not_found",
        Exit::Unhealthy => "unhealthy",
    }
}

/// How a piece of text is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    /// All is well.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong.
    Bad,
    /// Of lesser interest.
    Dim,
    /// Of greater interest.
    Strong,
}

/// The text in its tone, where colours are shown.
pub fn paint(colour: bool, tone: Tone, text: &str) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Warn => "33",
        Tone::Bad => "31",
        Tone::Dim => "2",
        Tone::Strong => "1",
    };
    if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.into() }
}

/// Other people's text on one line, with every control character made visible.
pub fn clean(text: &str) -> Cow<'_, str> {
    if text.chars().any(is_harmful) {
        let shown = text.chars().map(|c| if is_harmful(c) { '\u{fffd}' } else { c });
        Cow::Owned(shown.collect())
    } else {
        Cow::Borrowed(text)
    }
}

/// Other people's text with its line ends, every other control character made visible.
pub fn clean_lines(text: &str) -> String {
    text.lines().map(clean).collect::<Vec<_>>().join("\n")
}

/// Control characters, and those that turn the direction of writing around.
fn is_harmful(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Aligned columns without borders.
pub struct Table {
    inner: comfy_table::Table,
    colour: bool,
}

impl Table {
    /// An empty table with these headings.
    pub fn new(colour: bool, headings: &[&str]) -> Self {
        let mut inner = comfy_table::Table::new();
        inner.load_style(presets::NOTHING).force_no_tty();
        if colour {
            inner.enforce_styling();
        }
        let heading = |text: &&str| {
            let cell = Cell::new(text);
            if colour { cell.add_attribute(Attribute::Bold) } else { cell }
        };
        inner.set_header(headings.iter().map(heading).collect::<Vec<_>>());
        for column in inner.column_iter_mut() {
            column.set_padding((0, 2));
        }
        Self { inner, colour }
    }

    /// The column's cells end at its right edge.
    pub fn right(mut self, column: usize) -> Self {
        if let Some(column) = self.inner.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        self
    }

    /// Adds a row; a cell is text, with a tone where it has one.
    pub fn row(&mut self, cells: impl IntoIterator<Item = (String, Option<Tone>)>) {
        let cells = cells.into_iter().map(|(text, tone)| {
            let cell = Cell::new(clean(&text));
            match tone {
                _ if !self.colour => cell,
                None => cell,
                Some(Tone::Good) => cell.fg(Color::DarkGreen),
                Some(Tone::Warn) => cell.fg(Color::DarkYellow),
                Some(Tone::Bad) => cell.fg(Color::DarkRed),
                Some(Tone::Dim) => cell.add_attribute(Attribute::Dim),
                Some(Tone::Strong) => cell.add_attribute(Attribute::Bold),
            }
        });
        let cells: Vec<Cell> = cells.collect();
        self.inner.add_row(cells);
    }

    /// The table as lines, without spaces at their ends.
    pub fn text(&self) -> String {
        self.inner.trim_fmt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_peoples_text_cannot_steer_the_terminal() {
        assert_eq!(clean("plain ünïcode"), "plain ünïcode");
        assert_eq!(clean("a\x1b[31mb\r\u{202e}c"), "a\u{fffd}[31mb\u{fffd}\u{fffd}c");
        assert_eq!(clean_lines("a\nb\x07"), "a\nb\u{fffd}");
    }

    #[test]
    fn tables_are_aligned_and_plain_without_a_terminal() {
        let mut table = Table::new(false, &["NAME", "SIZE"]).right(1);
        table.row([("counter".into(), Some(Tone::Good)), ("7".into(), None)]);
        table.row([("kv".into(), None), ("1234".into(), None)]);
        assert_eq!(table.text(), "NAME     SIZE\ncounter     7\nkv       1234");
    }

    #[test]
    fn colours_are_used_where_they_are_shown() {
        let mut table = Table::new(true, &["STATE"]);
        table.row([("failed".into(), Some(Tone::Bad))]);
        assert!(table.text().contains('\x1b'));
    }
}
