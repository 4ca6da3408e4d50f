//! The table in `tests/README.md`: its second column is what the suite has for each number.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::scenario::{Scenario, Standing};

/// Numbers of what is not the library's, and shown by other tests than scenarios.
const ELSEWHERE: [&str; 1] = ["S94"];

/// How many scenarios the requirements have.
const SCENARIO_COUNT: u32 = 97;

/// The text with the second column of each row of the tables as the suite is now.
pub(crate) fn updated(text: &str, scenarios: &[Scenario]) -> String {
    let cells = cells(scenarios);
    let mut updated = String::new();
    for line in text.lines() {
        match row(line) {
            Some((number, rest)) => {
                let cell = cells.get(number).map_or("", String::as_str);
                let _ = writeln!(updated, "| {number} | {cell} |{rest}");
            }
            None => {
                updated.push_str(line);
                updated.push('\n');
            }
        }
    }
    updated
}

/// Numbers of the requirements' scenarios that the suite lacks.
pub(crate) fn missing(scenarios: &[Scenario]) -> Vec<String> {
    let has = |number: &String| {
        let is_written = scenarios.iter().any(|one| one.number() == number.as_str());
        is_written || ELSEWHERE.contains(&number.as_str())
    };
    let numbers = (1..=SCENARIO_COUNT).map(|number| format!("S{number}"));
    numbers.filter(|number| !has(number)).collect()
}

/// The number of a row and what follows its second cell.
fn row(line: &str) -> Option<(&str, &str)> {
    let (number, rest) = line.strip_prefix("| ")?.split_once(" |")?;
    let digits = number.strip_prefix(['S', 'R', 'G'])?;
    digits.parse::<u32>().ok()?;
    let (_, rest) = rest.split_once('|')?;
    Some((number, rest))
}

/// The second cell of each number.
fn cells(scenarios: &[Scenario]) -> BTreeMap<&str, String> {
    let mut cells: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for scenario in scenarios {
        for number in scenario.numbers.split_whitespace() {
            let is_own = number == scenario.number();
            let text = match (is_own, scenario.standing) {
                (false, _) => scenario.number().to_owned(),
                (true, Standing::Passes) => scenario.name.to_owned(),
                (true, Standing::Pending(why)) => format!("{} (pending: {why})", scenario.name),
                (true, Standing::Unwritten(why)) => why.to_owned(),
            };
            let texts = cells.entry(number).or_default();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
    }
    let joined = cells.into_iter().map(|(number, texts)| {
        let separator = if texts.iter().any(|text| text.contains(' ')) {
            "; "
        } else {
            ", "
        };
        (number, texts.join(separator))
    });
    joined.collect()
}
