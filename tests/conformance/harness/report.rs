//! What a run of the suite shows: a line a run, a matrix, JSON.

use std::io::{self, Write};
use std::path::Path;

use serde::Serialize;

use super::runner::{Outcome, Row};

/// One run in the JSON report.
#[derive(Serialize)]
struct Line<'a> {
    scenario: &'a str,
    name: &'a str,
    bench: &'a str,
    profile: &'a str,
    status: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    why: &'a str,
}

impl Outcome {
    /// The word in lines and reports.
    const fn word(&self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail(_) => "fail",
            Self::Skip(_) => "skip",
            Self::Pending(_) => "pending",
        }
    }

    /// The mark in the matrix.
    const fn mark(&self) -> char {
        match self {
            Self::Pass => '+',
            Self::Fail(_) => 'F',
            Self::Skip(_) => '.',
            Self::Pending(_) => 'p',
        }
    }

    /// Why, if there is anything to say.
    fn why(&self) -> &str {
        match self {
            Self::Pass => "",
            Self::Fail(why) | Self::Skip(why) | Self::Pending(why) => why,
        }
    }
}

/// One line for a run. A failure begins with `FAIL`.
pub(crate) fn print_line(row: &Row) {
    let status = match row.outcome {
        Outcome::Fail(_) => "FAIL",
        ref other => other.word(),
    };
    let why = match row.outcome.why() {
        "" => String::new(),
        why => format!(": {why}"),
    };
    println!(
        "{status:7} {:4} {:<34} {} ({} ms){why}",
        row.number,
        format!("{}/{}", row.bench, row.profile),
        row.name,
        row.time.as_millis(),
    );
}

/// A table: a line a scenario, a column a profile, sums at the end.
pub(crate) fn print_matrix(rows: &[Row]) {
    let mut columns: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        let column = (row.bench, row.profile.as_str());
        if !columns.contains(&column) {
            columns.push(column);
        }
    }
    println!("\n+ pass   F fail   . skip   p pending");
    for (index, (bench, profile)) in columns.iter().enumerate() {
        println!("{}{bench}/{profile}", "| ".repeat(index));
    }
    let mut rest = rows;
    while let [first, ..] = rest {
        let same = |row: &&Row| row.number == first.number && row.name == first.name;
        let len = rest.iter().take_while(same).count();
        let (line, later) = rest.split_at(len);
        let marks: String = columns
            .iter()
            .map(|&(bench, profile)| {
                let cell = line
                    .iter()
                    .find(|row| row.bench == bench && row.profile == profile);
                format!("{} ", cell.map_or(' ', |row| row.outcome.mark()))
            })
            .collect();
        println!("{marks}{:4} {}", first.number, first.name);
        rest = later;
    }
    let count = |word| rows.iter().filter(|row| row.outcome.word() == word).count();
    println!(
        "\n{} runs: {} passed, {} failed, {} skipped, {} pending",
        rows.len(),
        count("pass"),
        count("fail"),
        count("skip"),
        count("pending"),
    );
}

/// The report that other programs read.
pub(crate) fn write_json(rows: &[Row], path: &Path) -> io::Result<()> {
    let lines: Vec<_> = rows
        .iter()
        .map(|row| Line {
            scenario: row.number,
            name: row.name,
            bench: row.bench,
            profile: &row.profile,
            status: row.outcome.word(),
            why: row.outcome.why(),
        })
        .collect();
    let mut file = std::fs::File::create(path)?;
    serde_json::to_writer_pretty(&mut file, &lines)?;
    writeln!(file)
}
