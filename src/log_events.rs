//! What the library logs on a test's thread. The scenarios include this file too.

extern crate std;

use std::cell::RefCell;
use std::string::{String, ToString};
use std::sync::Once;
use std::vec::Vec;

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::thread_local;

thread_local! {
    static EVENTS: RefCell<Option<Vec<(Level, String)>>> = const { RefCell::new(None) };
}

struct Collector;

impl Log for Collector {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        EVENTS.with_borrow(Option::is_some)
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let event = (record.level(), record.args().to_string());
            EVENTS.with_borrow_mut(|events| events.as_mut().map(|events| events.push(event)));
        }
    }

    fn flush(&self) {}
}

/// Collects what is logged on this thread, from here until it is dropped.
pub(crate) struct LogEvents(());

impl LogEvents {
    pub(crate) fn collect() -> Self {
        static INSTALLED: Once = Once::new();
        INSTALLED.call_once(|| {
            log::set_logger(&Collector).expect("no other logger");
            log::set_max_level(LevelFilter::Debug);
        });
        EVENTS.set(Some(Vec::new()));
        Self(())
    }

    /// One event at least has all these words.
    #[track_caller]
    pub(crate) fn expect(&self, words: &[&str]) {
        assert!(
            self.count(words) > 0,
            "no event has {words:?}: {:#?}",
            self.lines()
        );
    }

    /// The number of events that have all these words.
    pub(crate) fn count(&self, words: &[&str]) -> usize {
        let has_all = |line: &&String| words.iter().all(|word| line.contains(word));
        self.lines().iter().filter(has_all).count()
    }

    /// What was logged, a line each.
    pub(crate) fn lines(&self) -> Vec<String> {
        EVENTS.with_borrow(|events| {
            let lines = events.iter().flatten();
            lines.map(|(_, line)| line.clone()).collect()
        })
    }
}

impl Drop for LogEvents {
    fn drop(&mut self) {
        EVENTS.set(None);
    }
}
