//! A question whose answer is not lost with whoever asked: an answer that was given and not taken, because the call that
//! waits for it was dropped in that moment, goes back to the actor. Room for that is kept in its mailbox beforehand.

use super::handle::Closed;
use crate::actors::{Answer, Permit};

/// A question that was asked. See the top of the file.
pub(super) struct Kept<M: Send, R, B: FnOnce(R) -> M> {
    answer: Answer<R>,
    way_back: Option<(Permit<M>, B)>,
}

impl<M: Send, R, B: FnOnce(R) -> M> Kept<M, R, B> {
    /// `back` is what the actor is told with an answer that nobody took.
    pub(super) const fn new(answer: Answer<R>, room: Permit<M>, back: B) -> Self {
        Self { answer, way_back: Some((room, back)) }
    }

    /// Waits for the answer.
    pub(super) async fn answer(mut self) -> Result<R, Closed> {
        (&mut self.answer.0).await.map_err(|_| Closed)
    }
}

impl<M: Send, R, B: FnOnce(R) -> M> Drop for Kept<M, R, B> {
    fn drop(&mut self) {
        // From here on the actor sees that nobody waits. There is nothing left to be had if the answer was taken.
        self.answer.0.close();
        if let Ok(answer) = self.answer.0.try_recv()
            && let Some((room, back)) = self.way_back.take()
        {
            // Refused only by an actor that has ended, and what it had given with it.
            let _ended = room.tell(back(answer));
        }
    }
}
