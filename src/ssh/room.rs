//! Places for the channels that the server opens towards us, and who has to leave when all are taken.
//!
//! Anybody on the host can connect to a port there and hold on: without a word, or with an answer that is never
//! read. A newcomer then takes the place of one who has been answered, or else of the oldest who has not said a word,
//! or else of the oldest, if they are here longer than anything honest takes. Closing first costs memory (see [`super::inbox::Channels`]), so
//! nobody has to leave while there is room.

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
    most: usize,
    guests: Mutex<Guests>,
}

#[derive(Debug, Default)]
struct Guests {
    next: u64,
    /// By when they came.
    here: BTreeMap<u64, Guest>,
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
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, guests: Mutex::default() })
    }

    fn guests(&self) -> MutexGuard<'_, Guests> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a place for the channel that `inbox` belongs to, or `None` when everybody here may stay.
    pub(super) fn take(self: &Arc<Self>, inbox: &Arc<Inbox>) -> Option<Place> {
        let mut guests = self.guests();
        if guests.here.len() >= self.most {
            let answered = guests.here.iter().find(|(_, guest)| guest.answered);
            let silent = || {
                let mut silent = guests.here.iter().filter(|(_, guest)| guest.inbox.is_silent());
                silent.next().filter(|(_, guest)| guest.since.elapsed() >= SPEECHLESS)
            };
            let oldest = || guests.here.iter().next().filter(|(_, guest)| guest.since.elapsed() >= HONEST);
            let (&leaves, _) = answered.or_else(silent).or_else(oldest)?;
            // Its pump closes the channel.
            if let Some(guest) = guests.here.remove(&leaves) {
                guest.inbox.end(End::Crowded);
            }
        }
        let number = guests.next;
        guests.next += 1;
        let guest = Guest { inbox: Arc::clone(inbox), since: Instant::now(), answered: false };
        guests.here.insert(number, guest);
        Some(Place { room: Arc::clone(self), number })
    }

    /// Returns how many places are taken.
    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.guests().here.len()
    }
}

impl Place {
    /// Everything was sent that there was to say; only the other side's close is waited for.
    pub(super) fn answered(&self) {
        if let Some(guest) = self.room.guests().here.get_mut(&self.number) {
            guest.answered = true;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.room.guests().here.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ssh::{
        handler::ARRIVAL_LIMIT,
        inbox::{Kind, Verdict},
    };

    fn inbox() -> Arc<Inbox> {
        let inbox = Arc::new(Inbox::new(ARRIVAL_LIMIT));
        assert_eq!(inbox.push(Kind::Data, b"GET"), Verdict::Keep);
        inbox
    }

    fn is_out(inbox: &Inbox) -> bool {
        inbox.state().end == Some(End::Crowded)
    }

    #[tokio::test(start_paused = true)]
    async fn the_answered_leave_first_then_the_oldest_and_never_the_fresh() {
        let room = Room::new(3);
        let inboxes: Vec<_> = std::iter::repeat_with(inbox).take(3).collect();
        let places: Vec<_> = inboxes.iter().map(|inbox| room.take(inbox).unwrap()).collect();
        assert!(room.take(&inbox()).is_none());
        places[1].answered();
        let third = room.take(&inbox()).unwrap();
        assert_eq!(inboxes.iter().map(|inbox| is_out(inbox)).collect::<Vec<_>>(), [false, true, false]);
        assert!(room.take(&inbox()).is_none());
        tokio::time::advance(HONEST).await;
        let fourth = room.take(&inbox()).unwrap();
        assert_eq!(inboxes.iter().map(|inbox| is_out(inbox)).collect::<Vec<_>>(), [true, true, false]);
        assert_eq!(room.taken(), 3);
        // Places that were lost already make no room a second time.
        drop(places);
        assert_eq!(room.taken(), 2);
        drop((third, fourth));
        assert_eq!(room.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_nothing_leaves_earlier_than_who_asked() {
        let room = Room::new(2);
        let (asked, silent) = (inbox(), Arc::new(Inbox::new(ARRIVAL_LIMIT)));
        let _places = [&asked, &silent].map(|inbox| room.take(inbox).unwrap());
        tokio::time::advance(SPEECHLESS).await;
        let _place = room.take(&inbox()).unwrap();
        assert_eq!((is_out(&asked), is_out(&silent)), (false, true));
        assert!(room.take(&inbox()).is_none());
    }
}
