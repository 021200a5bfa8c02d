//! Long answers: what all of them together hold in memory, however many clients read them however slowly.
//!
//! Invariants
//! - All answers that are held have [`HELD_BYTES`] at most. One that does not fit is not held: its client is told to come
//!   again.
//! - Equal answers are held once. Clients that ask for the same list get the same bytes.
//! - One answer of a kind is rendered at a time. Clients that ask meanwhile share the next one: it begins after they have
//!   asked, so that nothing they know of is missing in it, and nothing is kept for later clients.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::id::BackupId;

/// What all answers together may hold. Several pages of a list; the memory of the service is to be a few times that.
const HELD_BYTES: usize = 8 * 1024 * 1024;

/// The bytes of an answer, and the last backup in it where more follow.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) more_before: Option<BackupId>,
}

/// Which part of the list of backups is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    /// At most so many backups.
    pub(crate) limit: usize,
    /// Only those that come after this one in the list, which need not be there any more.
    pub(crate) before: Option<BackupId>,
}

/// The long answers of one service.
#[derive(Debug, Default)]
pub(crate) struct Listings {
    pub(crate) answers: Answers,
    pub(crate) pages: Turns<Page>,
    pub(crate) metrics: Turns<()>,
}

/// An answer that counts as held for as long as this lives.
#[derive(Debug, Clone)]
pub(crate) struct Held(Arc<Answer>);

impl Held {
    pub(crate) fn more_before(&self) -> Option<&BackupId> {
        self.0.more_before.as_ref()
    }
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.0.bytes
    }
}

/// Every answer that is held.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<Vec<Weak<Answer>>>);

impl Answers {
    /// Holds an answer, or the equal one that is held already; `None` where there is no room for it.
    pub(crate) fn hold(&self, answer: Answer) -> Option<Held> {
        let mut held = self.0.lock();
        held.retain(|one| one.strong_count() > 0);
        let mut held_bytes = 0;
        for one in held.iter().filter_map(Weak::upgrade) {
            if *one == answer {
                return Some(Held(one));
            }
            held_bytes += one.bytes.len();
        }
        if held_bytes + answer.bytes.len() > HELD_BYTES {
            return None;
        }
        let answer = Arc::new(answer);
        held.push(Arc::downgrade(&answer));
        Some(Held(answer))
    }
}

/// Renders one answer at a time, for all who have asked the same before it began.
#[derive(Debug)]
pub(crate) struct Turns<Q> {
    /// Orders the arrival of clients and the beginning of renderings.
    clock: AtomicU64,
    waiting_count: AtomicUsize,
    last: Mutex<Option<Last<Q>>>,
}

#[derive(Debug)]
struct Last<Q> {
    question: Q,
    begun: u64,
    answer: Held,
}

impl<Q> Default for Turns<Q> {
    fn default() -> Turns<Q> {
        Turns { clock: AtomicU64::new(0), waiting_count: AtomicUsize::new(0), last: Mutex::new(None) }
    }
}

impl<Q: Eq> Turns<Q> {
    /// The answer to `question`: rendered now, or by another client that began after this one has asked. What is no answer
    /// is not shared.
    pub(crate) fn answer<E>(
        &self,
        question: Q,
        render: impl FnOnce(&Q) -> Result<Option<Held>, E>,
    ) -> Result<Option<Held>, E> {
        let asked = self.clock.fetch_add(1, SeqCst);
        let waiting = Waiting::new(&self.waiting_count);
        let mut last = self.last.lock();
        let shared = last.as_ref().filter(|l| l.begun > asked && l.question == question).map(|l| l.answer.clone());
        let outcome = match shared {
            Some(answer) => Ok(Some(answer)),
            None => {
                // Given back before the next one takes memory.
                *last = None;
                let begun = self.clock.fetch_add(1, SeqCst);
                let outcome = render(&question);
                if let Ok(Some(answer)) = &outcome {
                    *last = Some(Last { question, begun, answer: answer.clone() });
                }
                outcome
            }
        };
        // Counted down while the lock is held: otherwise each of two that end at once takes the other for one that waits.
        if waiting.end() {
            *last = None;
        }
        outcome
    }
}

/// One client that waits for its turn, or has it.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicUsize) -> Waiting<'a> {
        count.fetch_add(1, SeqCst);
        Waiting(count)
    }

    /// Ends the turn. Returns whether no other client waits: one that comes now has asked too late for the last answer.
    fn end(self) -> bool {
        let count = self.0.fetch_sub(1, SeqCst);
        std::mem::forget(self);
        count == 1
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::thread;

    use super::*;

    fn answer(bytes: usize, fill: u8) -> Answer {
        Answer { bytes: vec![fill; bytes], more_before: None }
    }

    #[test]
    fn equal_answers_are_one_and_all_together_are_bounded() {
        let answers = Answers::default();
        let many: Vec<Held> = (0..100).map(|_| answers.hold(answer(HELD_BYTES / 2, 1)).expect("it is one")).collect();
        assert!(many.iter().all(|one| Arc::ptr_eq(&one.0, &many[0].0)));
        let other = answers.hold(answer(HELD_BYTES / 2, 2)).expect("there is room for two");
        assert!(answers.hold(answer(1, 3)).is_none(), "and for no more");
        let next = Answer { more_before: BackupId::parse("1"), ..answer(HELD_BYTES / 2, 2) };
        assert!(answers.hold(next).is_none(), "what follows belongs to the answer");
        drop(other);
        assert!(answers.hold(answer(1, 3)).is_some(), "what no client reads any more takes no room");
    }

    /// While one is rendered, others ask: they get one that began after that, once for all.
    #[test]
    fn clients_that_ask_meanwhile_share_the_next() {
        let (answers, turns) = (Answers::default(), Turns::<u32>::default());
        let renderings_count = AtomicUsize::new(0);
        let (begun, all_ask) = (Barrier::new(2), Barrier::new(2));
        let ask = |wait: bool| {
            turns.answer(7, |_| {
                if wait {
                    begun.wait();
                    all_ask.wait();
                }
                let number = renderings_count.fetch_add(1, SeqCst);
                Ok::<_, ()>(answers.hold(answer(10, u8::try_from(number).expect("there are few"))))
            })
        };
        let bytes = |held: Result<Option<Held>, ()>| held.expect("no error").expect("there is room").as_ref()[0];
        thread::scope(|scope| {
            let first = scope.spawn(|| bytes(ask(true)));
            begun.wait();
            let others: Vec<_> = (0..20).map(|_| scope.spawn(|| bytes(ask(false)))).collect();
            while turns.waiting_count.load(SeqCst) < 21 {
                thread::yield_now();
            }
            all_ask.wait();
            assert_eq!(first.join().expect("no panic"), 0);
            let others: Vec<u8> = others.into_iter().map(|other| other.join().expect("no panic")).collect();
            assert_eq!(others, [1; 20]);
        });
        assert!(turns.last.lock().is_none(), "nothing is kept");
        assert_eq!(bytes(ask(false)), 2, "a later one is new");
    }
}
