//! What the library logs on a scenario's thread.

use std::cell::RefCell;
use std::sync::Once;

use log::{Level, LevelFilter, Log, Metadata, Record};

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
        EVENTS.with_borrow(|events| {
            let mut lines = events.iter().flatten().map(|(_, line)| line);
            assert!(
                lines.any(|line| words.iter().all(|word| line.contains(word))),
                "no event has {words:?}: {events:#?}"
            );
        });
    }
}

impl Drop for LogEvents {
    fn drop(&mut self) {
        EVENTS.set(None);
    }
}
