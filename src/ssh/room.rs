//! Places for the channels that the server opens towards us, and who has to leave when all are taken.
//!
//! Anybody on the host can connect to a port there and hold on: without a word, or with an answer that is never
//! read. Those who have been answered are counted apart from those who are being served. Where there are too many of
//! the former, the oldest of them leaves for a newcomer; of the latter the oldest who has not said a word, or else the
//! oldest, if they are here longer than anything honest takes. Closing first costs memory (see
//! [`super::inbox::Channels`]), so nobody has to leave while there is room.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::inbox::{End, Inbox};

/// Who has been here so long is not waiting for an answer any more: SDKs give up after one second, and we answer
/// within 900 ms or not at all.
const HONEST: Duration = Duration::from_secs(1);

/// A client has its request ready when it connects, so that its first bytes are one round trip behind it. On a slower
/// line the oldest is still not the newcomer.
const SPEECHLESS: Duration = Duration::from_millis(250);

/// The places of one connection.
#[derive(Debug)]
pub(super) struct Room {
    most_served: usize,
    most_open: usize,
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    next: u64,
    /// By when they came.
    here: BTreeMap<u64, Guest>,
    /// How many of them have not been answered.
    served: usize,
}

impl Guests {
    /// Returns those who have not been answered, oldest first.
    fn served(&self) -> impl Iterator<Item = (&u64, &Guest)> {
        self.here.iter().filter(|(_, guest)| !guest.answered)
    }

    fn remove(&mut self, number: u64) -> Option<Guest> {
        let guest = self.here.remove(&number)?;
        self.served -= usize::from(!guest.answered);
        Some(guest)
    }
}

#[derive(Debug)]
struct Guest {
    inbox: Arc<Inbox>,
    since: Instant,
    answered: bool,
}

/// One place; dropping it makes room.
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<Room>,
    number: u64,
}

impl Room {
    pub(super) fn new(most_served: usize, most_open: usize) -> Arc<Self> {
        Arc::new(Self { most_served, most_open, guests: Mutex::default() })
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a place for the channel that `inbox` belongs to, or `None` when everybody here may stay.
    pub(super) fn take(self: &Arc<Self>, inbox: &Arc<Inbox>) -> Option<Place> {
        let mut guests = self.guests();
        let leaves = if guests.served >= self.most_served {
            let mut silent = guests.served().filter(|(_, guest)| guest.inbox.is_silent());
            let silent = silent.next().filter(|(_, guest)| guest.since.elapsed() >= SPEECHLESS);
            let oldest = || guests.served().next().filter(|(_, guest)| guest.since.elapsed() >= HONEST);
            Some(*silent.or_else(oldest)?.0)
        } else if guests.here.len() >= self.most_open {
            guests.here.iter().find(|(_, guest)| guest.answered).map(|(&number, _)| number)
        } else {
            None
        };
        if let Some(guest) = leaves.and_then(|number| guests.remove(number)) {
            // Its pump closes the channel.
            guest.inbox.end(End::Crowded);
        }
        let number = guests.next;
        guests.next += 1;
        let guest = Guest { inbox: Arc::clone(inbox), since: Instant::now(), answered: false };
        guests.here.insert(number, guest);
        guests.served += 1;
        Some(Place { room: Arc::clone(self), number })
    }

    /// Returns how many are being served, and how many are here in all.
    #[cfg(test)]
    pub(super) fn taken(&self) -> (usize, usize) {
        let guests = self.guests();
        (guests.served, guests.here.len())
    }
}

impl Place {
    /// Everything was sent that there was to say; only the other side's close is waited for.
    pub(super) fn answered(&self) {
        let mut guests = self.room.guests();
        if let Some(guest) = guests.here.get_mut(&self.number).filter(|guest| !guest.answered) {
            guest.answered = true;
            guests.served -= 1;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(self.room.guests().remove(self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::{chunk::Kind, handler::ARRIVAL_LIMIT, inbox::Verdict};

    fn inbox() -> Arc<Inbox> {
        let inbox = Arc::new(Inbox::new(ARRIVAL_LIMIT));
        assert_eq!(inbox.push(Kind::Data, b"GET"), Verdict::Keep);
        inbox
    }

    fn is_out(inbox: &Inbox) -> bool {
        inbox.state().end == Some(End::Crowded)
    }

    fn are_out(inboxes: &[Arc<Inbox>]) -> Vec<bool> {
        inboxes.iter().map(|inbox| is_out(inbox)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_leaves_for_a_newcomer_and_never_the_fresh() {
        let room = Room::new(3, 100);
        let inboxes: Vec<_> = std::iter::repeat_with(inbox).take(3).collect();
        let places: Vec<_> = inboxes.iter().map(|inbox| room.take(inbox).unwrap()).collect();
        assert!(room.take(&inbox()).is_none());
        tokio::time::advance(HONEST).await;
        let newcomer = room.take(&inbox()).unwrap();
        assert_eq!(are_out(&inboxes), [true, false, false]);
        assert_eq!(room.taken(), (3, 3));
        // A place that was lost already makes no room a second time.
        drop(places);
        assert_eq!(room.taken(), (1, 1));
        drop(newcomer);
        assert_eq!(room.taken(), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn who_was_answered_is_counted_apart_and_leaves_when_all_is_full() {
        let room = Room::new(2, 3);
        let inboxes: Vec<_> = std::iter::repeat_with(inbox).take(4).collect();
        let mut places = Vec::new();
        for inbox in &inboxes {
            let place = room.take(inbox).unwrap();
            place.answered();
            place.answered();
            places.push(place);
        }
        assert_eq!(are_out(&inboxes), [true, false, false, false]);
        assert_eq!(room.taken(), (0, 3));
        let _served = [room.take(&inbox()).unwrap(), room.take(&inbox()).unwrap()];
        assert!(room.take(&inbox()).is_none());
        assert_eq!(are_out(&inboxes), [true, true, true, false]);
        assert_eq!(room.taken(), (2, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_leaves_earlier_than_who_asked() {
        let room = Room::new(2, 100);
        let (asked, silent) = (inbox(), Arc::new(Inbox::new(ARRIVAL_LIMIT)));
        let _places = [&asked, &silent].map(|inbox| room.take(inbox).unwrap());
        tokio::time::advance(SPEECHLESS).await;
        let _place = room.take(&inbox()).unwrap();
        assert_eq!((is_out(&asked), is_out(&silent)), (false, true));
        assert!(room.take(&inbox()).is_none());
    }
}
