//! The one timer of the schedules: it ends a wait at a time of the wall clock, also after the host slept or the clock was set.
//!
//! Invariant: between two settings of the timer, a thread that waits for it wakes up once, and also when the clock is set: then the time
//! that was computed may be wrong.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use crate::error::{IoContext, Result};

/// A timer of the wall clock.
#[derive(Debug)]
pub(crate) struct Timer(OwnedFd);

impl Timer {
    /// A timer that is not set.
    pub(crate) fn new() -> Result<Timer> {
        let made = timerfd_create(TimerfdClockId::Realtime, TimerfdFlags::CLOEXEC);
        Ok(Timer(made.context(|| "cannot make the timer of the schedules".to_owned())?))
    }

    /// Ends the wait at this time, or at once if it is over; the time that was set before is forgotten.
    pub(crate) fn set(&self, at_ms: u64) -> Result<()> {
        // Zero would turn the timer off.
        let at_ms = at_ms.max(1);
        let seconds = i64::try_from(at_ms / 1000).unwrap_or(i64::MAX);
        let nanoseconds = i64::try_from(at_ms % 1000).unwrap_or(0) * 1_000_000;
        let once = Itimerspec {
            it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: Timespec { tv_sec: seconds, tv_nsec: nanoseconds as _ },
        };
        let flags = TimerfdTimerFlags::ABSTIME | TimerfdTimerFlags::CANCEL_ON_SET;
        match timerfd_settime(&self.0, flags, &once) {
            // The clock was set after the last wait, and that is told only once: what was computed may be wrong.
            Err(Errno::CANCELED) if at_ms > 1 => self.set(1),
            // It was set once more; the timer is set nevertheless.
            Err(Errno::CANCELED) => Ok(()),
            set => set.map(|_| ()).context(|| "cannot set the timer of the schedules".to_owned()),
        }
    }

    /// Waits until the time is over, or the clock is set.
    pub(crate) fn wait(&self) -> Result<()> {
        let mut expirations = [0; 8];
        loop {
            match rustix::io::read(&self.0, &mut expirations) {
                Err(Errno::INTR) => {}
                Ok(_) | Err(Errno::CANCELED) => return Ok(()),
                Err(e) => return Err(e).context(|| "cannot wait for the timer of the schedules".to_owned()),
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::clock::now_ms;

    #[test]
    fn a_wait_ends_at_its_time_and_another_setting_takes_its_place() {
        let timer = Timer::new().unwrap();
        let began = Instant::now();
        timer.set(now_ms() + 50).unwrap();
        timer.wait().unwrap();
        assert!(began.elapsed() >= Duration::from_millis(49), "{:?}", began.elapsed());
        timer.set(u64::MAX).unwrap();
        timer.set(0).unwrap();
        timer.wait().unwrap();
        // A thread that waits already sees the new time.
        timer.set(now_ms() + 3_600_000).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| timer.wait());
            std::thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            timer.set(1).unwrap();
            waiting.join().unwrap().unwrap();
        });
    }
}
