//! Progress of a guest's making, on standard error.

use image::{Event, Progress, Stage};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Duration;

/// A bar on a terminal; lines elsewhere.
pub(crate) struct Bar {
    bar: Option<ProgressBar>,
}

impl Bar {
    pub(crate) fn new() -> Self {
        Self { bar: None }
    }
}

fn describe(stage: Stage) -> &'static str {
    match stage {
        Stage::Waiting => "Waiting for another doppel that builds a guest",
        Stage::Lists => "Fetching Debian's package lists",
        Stage::Download => "Fetching packages",
        Stage::Unpack => "Unpacking",
        Stage::Write => "Writing the guest",
    }
}

fn style(stage: Stage) -> ProgressStyle {
    let template = match stage {
        Stage::Download => "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes}",
        Stage::Lists => "{msg} {wide_bar} {percent}%",
        _ => "{msg} {spinner}",
    };
    ProgressStyle::with_template(template).expect("the templates are sound")
}

impl Progress for Bar {
    fn report(&mut self, event: Event<'_>) {
        match event {
            Event::Stage(stage) => {
                let bar = self.bar.get_or_insert_with(ProgressBar::no_length);
                bar.set_style(style(stage));
                bar.set_message(describe(stage));
                bar.enable_steady_tick(Duration::from_millis(100));
                if bar.is_hidden() {
                    eprintln!("{}...", describe(stage));
                }
            }
            Event::Advance { done, total } => {
                if let Some(bar) = &self.bar {
                    bar.set_length(total);
                    bar.set_position(done);
                }
            }
            Event::Note(text) => match &self.bar {
                Some(bar) if !bar.is_hidden() => bar.println(format!("doppel: {text}")),
                _ => eprintln!("doppel: {text}"),
            },
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
