//! What a person sees while something runs: a spinner on a terminal, plain lines elsewhere.

use std::time::{Duration, Instant};

use console::style;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// One running activity.
pub(crate) struct Progress {
    title: String,
    bar: Option<ProgressBar>,
    started: Instant,
}

impl Progress {
    /// Announces an activity.
    pub(crate) fn start(title: impl Into<String>) -> Self {
        let title = title.into();
        let bar = console::user_attended().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stdout());
            if let Ok(template) = ProgressStyle::with_template("{spinner} {prefix} {wide_msg:.dim}")
            {
                bar.set_style(template);
            }
            bar.set_prefix(title.clone());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            println!("{title} ...");
        }
        Self {
            title,
            bar,
            started: Instant::now(),
        }
    }

    /// Shows what the activity is at; only on a terminal.
    pub(crate) fn at(&self, message: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(message.trim().to_owned());
        }
    }

    /// Prints a line that stays.
    pub(crate) fn line(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| println!("{line}")),
            None => println!("{line}"),
        }
    }

    /// Time since the start.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends the activity with one line: a mark, the title, its duration, a remark.
    pub(crate) fn finish(self, mark: Mark, remark: &str) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let seconds = self.elapsed().as_secs_f64();
        let remark = if remark.is_empty() {
            String::new()
        } else {
            format!("  {}", style(remark).dim())
        };
        println!("{} {} ({seconds:.1} s){remark}", mark.shown(), self.title);
    }
}

/// How something ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mark {
    /// It held.
    Pass,
    /// It did not.
    Fail,
    /// It was not run.
    Skip,
}

impl Mark {
    /// The mark as printed: four columns, coloured on a terminal.
    pub(crate) fn shown(self) -> console::StyledObject<&'static str> {
        match self {
            Self::Pass => style("pass").green(),
            Self::Fail => style("FAIL").red().bold(),
            Self::Skip => style("skip").yellow(),
        }
    }
}
