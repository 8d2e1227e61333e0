//! Which local APICs a message reaches.

use crate::inbox::Inbox;
use crate::message::Destination;
use crate::message::{Delivery, Message};
use std::sync::Arc;

/// Delivers `message` and calls `wake` with the index of every inbox whose owner must be woken.
/// `source` is the index of the sender, if it is one of them.
pub fn send(
    inboxes: &[Arc<Inbox>],
    message: &Message,
    source: Option<usize>,
    mut wake: impl FnMut(usize),
) {
    visit_targets(inboxes, message, source, |index| {
        if inboxes[index].deliver(message) {
            wake(index);
        }
    });
}

/// Calls `visit` with the index of every inbox that `message` is for.
pub fn visit_targets(
    inboxes: &[Arc<Inbox>],
    message: &Message,
    source: Option<usize>,
    mut visit: impl FnMut(usize),
) {
    if message.delivery == Delivery::LowestPriority {
        if let Some(index) = arbitrate(inboxes, message, source) {
            visit(index);
        }
        return;
    }
    for index in matching(inboxes, message, source) {
        visit(index);
    }
}

fn matching<'a>(
    inboxes: &'a [Arc<Inbox>],
    message: &Message,
    source: Option<usize>,
) -> impl Iterator<Item = usize> + Clone + 'a {
    let destination = message.destination;
    let skipped = source.filter(|_| destination == Destination::Others);
    (0..inboxes.len())
        .filter(move |index| Some(*index) != skipped && inboxes[*index].matches(destination))
}

/// The winner of the lowest-priority arbitration (SDM vol. 3, 11.6.2.4): among those with the
/// lowest task priority, the vector picks one, which spreads the vectors over the processors and
/// keeps each where its data is cached.
fn arbitrate(inboxes: &[Arc<Inbox>], message: &Message, source: Option<usize>) -> Option<usize> {
    let enabled = matching(inboxes, message, source).filter(|i| inboxes[*i].is_enabled());
    let lowest = enabled.clone().map(|i| inboxes[i].priority_class()).min()?;
    let candidates = enabled
        .clone()
        .filter(|i| inboxes[*i].priority_class() == lowest);
    // Priorities change while we look: an empty second pass falls back to any that is enabled.
    let chosen = usize::from(message.vector) % candidates.clone().count().max(1);
    candidates
        .clone()
        .nth(chosen)
        .or_else(|| enabled.clone().next())
}
