//! Long answers: limits the memory of all of them together, however many clients read them, and however slowly.
//!
//! Invariants
//! - All held answers together have at most [`HELD_BYTES`]. An answer that does not fit is not held: its client must try again.
//! - Equal answers are held once: clients that ask for the same list get the same bytes.
//! - Only one answer of a kind is rendered at a time. Clients that ask meanwhile share the next one: its rendering begins after
//!   their requests, so that every backup they know of is in it. No answer is kept for later clients.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::id::BackupId;

/// The size of all held answers together: several pages of a list. The memory of the service is a few times that.
const HELD_BYTES: usize = 8 * 1024 * 1024;

/// The bytes of an answer, and the last backup in it if more follow.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) bytes: Vec<u8>,
    pub(crate) more_before: Option<BackupId>,
}

/// The requested part of the list of backups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Page {
    /// The largest number of backups.
    pub(crate) limit: usize,
    /// Only the backups after this one in the list; it need not exist any more.
    pub(crate) before: Option<BackupId>,
}

/// The long answers of one service.
#[derive(Debug, Default)]
pub(crate) struct Listings {
    pub(crate) answers: Answers,
    pub(crate) pages: Turns<Page>,
    pub(crate) metrics: Turns<()>,
    pub(crate) status_pages: Turns<()>,
}

/// An answer that counts as held as long as this exists.
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

/// All held answers.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<Vec<Weak<Answer>>>);

impl Answers {
    /// Holds an answer, or returns an equal one that is already held; `None` if there is no room for it.
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

/// Renders one answer at a time, for all clients that asked the same question before the rendering began.
#[derive(Debug)]
pub(crate) struct Turns<Q> {
    /// Numbers the requests of clients and the beginnings of renderings, in their order.
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
    /// The answer to `question`: rendered now, or by another client whose rendering began after this request. An error, or the
    /// lack of room, is not shared.
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
                // Freed before the next answer needs memory.
                *last = None;
                let begun = self.clock.fetch_add(1, SeqCst);
                let outcome = render(&question);
                if let Ok(Some(answer)) = &outcome {
                    *last = Some(Last { question, begun, answer: answer.clone() });
                }
                outcome
            }
        };
        // Counted down under the lock: otherwise, of two clients that end at once, each would take the other for a waiting one.
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

    /// Ends the turn. Returns whether no other client waits: a client that arrives now is too late for the last answer.
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

    /// Clients that ask while an answer is rendered share the next one, whose rendering began after their requests.
    #[test]
    fn clients_that_ask_meanwhile_share_the_next() {
        let (answers, turns) = (Answers::default(), Turns::<u32>::default());
        let renderings_count = AtomicUsize::new(0);
        let (begun, all_ask) = (Barrier::new(2), Barrier::new(2));
        let ask = |before: &dyn Fn()| {
            turns.answer(7, |_| {
                before();
                let number = renderings_count.fetch_add(1, SeqCst);
                Ok::<_, ()>(answers.hold(answer(10, u8::try_from(number).expect("there are few"))))
            })
        };
        let bytes = |held: Result<Option<Held>, ()>| held.expect("no error").expect("there is room").as_ref()[0];
        thread::scope(|scope| {
            let first = scope.spawn(|| {
                bytes(ask(&|| {
                    begun.wait();
                    all_ask.wait();
                }))
            });
            begun.wait();
            let others: Vec<_> = (0..20).map(|_| scope.spawn(|| bytes(ask(&|| ())))).collect();
            while turns.waiting_count.load(SeqCst) < 21 {
                thread::yield_now();
            }
            all_ask.wait();
            assert_eq!(first.join().expect("no panic"), 0);
            let others: Vec<u8> = others.into_iter().map(|other| other.join().expect("no panic")).collect();
            assert_eq!(others, [1; 20]);
        });
        assert!(turns.last.lock().is_none(), "nothing is kept");
        assert_eq!(bytes(ask(&|| ())), 2, "a later one is new");
    }
}
