//! When an agent stops accepting connections. Pure; the time is passed in.

use std::collections::BTreeSet;
use std::time::Instant;

use super::SUCCESSION;

/// Why an agent drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// It was asked to end.
    Asked,
    /// A newer one serves its pods.
    HandedOver,
    /// It handed over to one that has gone since.
    SuccessorGone,
    /// It handed over to one that did not say in time that it serves.
    SuccessorLate,
    /// It could not let go of the kernel's maps, and does not write them any more either.
    Stuck,
}

/// What has happened so far.
#[derive(Debug, Default)]
pub struct Course {
    announced: BTreeSet<u64>,
    released: Option<(u64, Instant)>,
    asked: Option<Instant>,
    why: Option<Why>,
}

impl Course {
    /// A newer agent starts.
    pub fn announced(&mut self, id: u64) {
        self.announced.insert(id);
    }

    /// It was given what it needs to take over.
    pub fn released(&mut self, id: u64, now: Instant) {
        self.released = Some((id, now));
    }

    /// It could not be.
    pub fn stuck(&mut self) {
        self.why.get_or_insert(Why::Stuck);
    }

    /// Whether a newer agent has it.
    pub fn is_released(&self) -> bool {
        self.released.is_some()
    }

    /// A newer agent serves this one's pods.
    pub fn serving(&mut self, id: u64) {
        if self.released.is_some_and(|(to, _)| to == id) {
            self.why.get_or_insert(Why::HandedOver);
        }
    }

    /// A newer agent is gone.
    pub fn gone(&mut self, id: u64) {
        self.announced.remove(&id);
        if self.released.is_some_and(|(to, _)| to == id) {
            self.why.get_or_insert(Why::SuccessorGone);
        }
    }

    /// SIGTERM or SIGINT.
    pub fn asked(&mut self, now: Instant) {
        self.asked.get_or_insert(now);
    }

    /// Whether it was asked to end.
    pub fn is_asked(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether it is time to drain, and why.
    pub fn drain(&self, now: Instant) -> Option<Why> {
        if self.why.is_some() {
            return self.why;
        }
        if let Some((_, since)) = self.released {
            return (now >= since + SUCCESSION).then_some(Why::SuccessorLate);
        }
        let asked = self.asked?;
        // One that starts will need what waits at the listeners.
        (self.announced.is_empty() || now >= asked + SUCCESSION).then_some(Why::Asked)
    }

    /// When to ask again, whatever happens.
    pub fn due(&self) -> Option<Instant> {
        let since = self.released.map(|(_, since)| since).or(self.asked)?;
        Some(since + SUCCESSION)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked_at(now: Instant) -> Course {
        let mut course = Course::default();
        course.asked(now);
        course
    }

    #[test]
    fn one_that_nobody_replaces_drains_when_it_is_asked_to_end() {
        let now = Instant::now();
        assert_eq!(Course::default().drain(now), None);
        assert_eq!(Course::default().due(), None);
        assert_eq!(asked_at(now).drain(now), Some(Why::Asked));
    }

    #[test]
    fn one_that_is_about_to_be_replaced_serves_on_for_a_while() {
        let now = Instant::now();
        let mut course = Course::default();
        course.announced(3);
        assert_eq!(course.drain(now), None, "an announcement alone changes nothing");
        course.asked(now);
        assert_eq!(course.drain(now), None);
        assert_eq!(course.drain(course.due().unwrap()), Some(Why::Asked), "it does not come");
        course.gone(3);
        assert_eq!(course.drain(now), Some(Why::Asked), "it is gone");
    }

    #[test]
    fn one_that_handed_over_drains_when_the_newer_one_serves_is_gone_or_is_late() {
        let now = Instant::now();
        let released = |more: fn(&mut Course)| {
            let mut course = asked_at(now - 2 * SUCCESSION);
            course.announced(1);
            course.announced(2);
            course.released(1, now);
            more(&mut course);
            course
        };
        assert_eq!(released(|_| {}).drain(now), None, "also if it was asked to end long ago");
        assert_eq!(released(|course| course.serving(1)).drain(now), Some(Why::HandedOver));
        assert_eq!(released(|course| course.gone(1)).drain(now), Some(Why::SuccessorGone));
        for nothing in [(|course: &mut Course| course.serving(2)) as fn(&mut Course), |course| course.gone(2)] {
            assert_eq!(released(nothing).drain(now), None, "another one than it handed over to");
        }
        let late = released(|_| {});
        assert_eq!(late.drain(late.due().unwrap()), Some(Why::SuccessorLate));
        let both = released(|course| {
            course.serving(1);
            course.gone(1);
        });
        assert_eq!(both.drain(now), Some(Why::HandedOver), "the first word counts");
        let mut stuck = Course::default();
        stuck.stuck();
        assert_eq!(stuck.drain(now), Some(Why::Stuck));
    }
}
