//! Events on their way to the host: bounded queue for polling, the last ones for readers, one callback.

use super::event::Event;
use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a host gives to be called with each event, on the worker's thread.
pub type EventCallback = Box<dyn Fn(&Event) + Send + Sync>;

struct Queue {
    /// Not polled yet.
    waiting: VecDeque<Event>,
    /// The last ones, whether polled or not.
    last: VecDeque<Event>,
    made: u64,
    /// Fell out of `waiting` unseen.
    overflowed: u64,
    /// Whether anybody polls; nobody loses what nobody asked for.
    polled: bool,
    callback: Option<Arc<EventCallback>>,
    closed: bool,
}

/// All events of one monitor.
pub(crate) struct Events {
    queue: Mutex<Queue>,
    /// Events came, or the monitor was stopped.
    came: Condvar,
    /// A call of a callback ended.
    called: Condvar,
    most: usize,
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Events(at most {})", self.most)
    }
}

impl Events {
    pub(crate) fn new(most: usize) -> Self {
        let queue = Queue {
            waiting: VecDeque::new(),
            last: VecDeque::new(),
            made: 0,
            overflowed: 0,
            polled: false,
            callback: None,
            closed: false,
        };
        Events { queue: Mutex::new(queue), came: Condvar::new(), called: Condvar::new(), most }
    }

    /// Bytes of both queues when full, an event taken to name eight latents.
    pub(crate) fn bytes(most: usize) -> usize {
        most.saturating_mul(2 * (size_of::<Event>() + 64))
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // No user code runs under the lock, so a poisoned queue is whole.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the event the next id, queues it and calls the callback, if there is one. Returns the id.
    ///
    /// # Panics
    /// With the callback's panic.
    pub(crate) fn push(&self, mut event: Event) -> u64 {
        let mut queue = self.lock();
        queue.made += 1;
        event.id = queue.made;
        let id = event.id;
        if queue.last.len() == self.most {
            queue.last.pop_front();
        }
        queue.last.push_back(event.clone());
        let callback = queue.callback.clone();
        if callback.is_none() {
            if queue.waiting.len() == self.most {
                queue.waiting.pop_front();
                queue.overflowed += 1;
            }
            queue.waiting.push_back(event.clone());
            self.came.notify_one();
        }
        drop(queue);
        if let Some(callback) = callback {
            let ended = Ended { events: self, callback: Some(callback) };
            if let Some(callback) = &ended.callback {
                callback(&event);
            }
        }
        id
    }

    /// Takes up to `most` waiting events, the oldest first; waits up to `timeout` for the first.
    pub(crate) fn poll(&self, most: usize, timeout: Duration) -> Vec<Event> {
        let end = Instant::now().checked_add(timeout);
        let mut queue = self.lock();
        queue.polled = true;
        while queue.waiting.is_empty() && !queue.closed {
            let left = match end {
                Some(end) => end.saturating_duration_since(Instant::now()),
                None => Duration::from_secs(3600),
            };
            if left.is_zero() {
                break;
            }
            queue = self.came.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        let count = most.min(queue.waiting.len());
        queue.waiting.drain(..count).collect()
    }

    /// Up to `most` of the events kept for readers whose id is above `since`, the oldest first.
    pub(crate) fn since(&self, since: u64, most: usize) -> Vec<Event> {
        let queue = self.lock();
        let from = queue.last.partition_point(|event| event.id <= since);
        queue.last.range(from..).take(most).cloned().collect()
    }

    /// Events made, and those lost to slow consumers.
    pub(crate) fn counts(&self) -> (u64, u64) {
        let queue = self.lock();
        (queue.made, if queue.polled { queue.overflowed } else { 0 })
    }

    /// Puts another callback in place. With `wait`, returns when no call of the former one is under way, at the latest
    /// then.
    pub(crate) fn set_callback(&self, callback: Option<EventCallback>, wait: Option<Duration>) {
        let mut queue = self.lock();
        let Some(former) = std::mem::replace(&mut queue.callback, callback.map(Arc::new)) else { return };
        let end = wait.and_then(|wait| Instant::now().checked_add(wait));
        while let Some(end) = end
            && Arc::strong_count(&former) > 1
        {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            queue = self.called.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(queue);
        // The host's own destructor may run here, without the lock.
        drop(former);
    }

    /// Those who wait for events need not any more.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.came.notify_all();
    }
}

/// Tells, when a call of the callback ended (by panic, too), whoever waits for that.
struct Ended<'a> {
    events: &'a Events,
    callback: Option<Arc<EventCallback>>,
}

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        drop(self.callback.take());
        // Under the lock, so that nobody is between looking at the count and going to sleep.
        let _queue = self.events.lock();
        self.events.called.notify_all();
    }
}

/// Which event a match became, so that its retraction can name it: of the last matches of a site, whose handles ascend.
#[derive(Debug, Default)]
pub(crate) struct Ids {
    /// Handle and id, at `handle % REMEMBERED`. Taken whole by the first match, so that memory is flat from then on.
    last: Vec<(u64, u64)>,
}

/// Matches that can still be retracted by name: more than requests alive can have under way by far.
const REMEMBERED: usize = 1 << 16;
/// No match has it: they count from 1.
const NO_HANDLE: u64 = u64::MAX;

impl Ids {
    pub(crate) fn remember(&mut self, handle: u64, id: u64) {
        if self.last.is_empty() {
            self.last.resize(REMEMBERED, (NO_HANDLE, 0));
        }
        self.last[handle as usize % REMEMBERED] = (handle, id);
    }

    /// The event's id; 0 where it was forgotten.
    pub(crate) fn id(&self, handle: u64) -> u64 {
        let found = self.last.get(handle as usize % REMEMBERED);
        found.map_or(0, |&(other, id)| if other == handle { id } else { 0 })
    }

    pub(crate) fn bytes() -> usize {
        REMEMBERED * size_of::<(u64, u64)>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::monitor::{EventKind, ModelId, Severity};

    fn event() -> Event {
        Event {
            id: 0,
            kind: EventKind::Matched,
            unix_nanos: 0,
            site: "s".into(),
            model: ModelId([0; 8]),
            request: 0,
            position: 0,
            token: -1,
            rule: "r".into(),
            severity: Severity::Info,
            gap: false,
            latents: Box::default(),
            retracts: 0,
        }
    }

    #[test]
    fn a_slow_consumer_loses_the_oldest_by_count() {
        let events = Events::new(3);
        for _ in 0..5 {
            events.push(event());
        }
        assert_eq!(events.counts(), (5, 0), "nobody polls");
        let ids: Vec<u64> = events.poll(2, Duration::ZERO).iter().map(|event| event.id).collect();
        assert_eq!(ids, [3, 4]);
        assert_eq!(events.counts(), (5, 2));
        assert_eq!(events.since(3, 9).iter().map(|event| event.id).collect::<Vec<_>>(), [4, 5]);
        assert_eq!(events.since(0, 1)[0].id, 3);
        assert_eq!(events.poll(9, Duration::from_millis(5)).len(), 1);
        assert!(events.poll(9, Duration::from_millis(5)).is_empty());
    }

    #[test]
    fn a_poll_is_woken_by_an_event_and_by_the_end() {
        let events = Events::new(3);
        std::thread::scope(|scope| {
            let poll = scope.spawn(|| events.poll(1, Duration::from_secs(60)));
            events.push(event());
            assert_eq!(poll.join().unwrap().len(), 1);
            let poll = scope.spawn(|| events.poll(1, Duration::MAX));
            events.close();
            assert!(poll.join().unwrap().is_empty());
        });
    }

    #[test]
    fn taking_a_callback_away_waits_for_its_call() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let (events, calls) = (Events::new(3), Arc::new(AtomicU32::new(0)));
        let (inside, sees) = std::sync::mpsc::channel();
        let counted = Arc::clone(&calls);
        let callback: EventCallback = Box::new(move |_| {
            inside.send(()).unwrap();
            std::thread::sleep(Duration::from_millis(30));
            counted.fetch_add(1, Ordering::Relaxed);
        });
        events.set_callback(Some(callback), None);
        std::thread::scope(|scope| {
            scope.spawn(|| events.push(event()));
            sees.recv().unwrap();
            events.set_callback(None, Some(Duration::from_secs(60)));
            assert_eq!(calls.load(Ordering::Relaxed), 1, "the call was still under way");
        });
        assert!(events.poll(1, Duration::ZERO).is_empty(), "the callback had it");
    }

    #[test]
    fn ids_are_forgotten_oldest_first() {
        let mut ids = Ids::default();
        for handle in 0..=REMEMBERED as u64 {
            ids.remember(handle, handle + 10);
        }
        assert_eq!((ids.id(0), ids.id(1), ids.id(REMEMBERED as u64)), (0, 11, REMEMBERED as u64 + 10));
    }
}
