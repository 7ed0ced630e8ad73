//! What the actors of one arbiter share without a mailbox because none of them owns it: a pool of connections, a TLS
//! context.
//!
//! One thing of a type for each owner, made when it is first asked for. The owner is what all arbiters share, say the
//! settings of a listener; when it is gone, the thing is taken off the shelf as soon as another is put there. Things
//! need not be `Send` and never leave their arbiter.

use std::any::Any;
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, Weak};

struct Slot {
    owner: Weak<dyn Any + Send + Sync>,
    thing: Rc<dyn Any>,
}

thread_local! {
    static SHELF: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
}

/// The thing of type `T` that belongs to `owner` on this thread. Looks through as many slots as there are owners.
pub fn shelf<O: Any + Send + Sync, T: Any>(owner: &Arc<O>, make: impl FnOnce() -> T) -> Rc<T> {
    let found = SHELF.with_borrow(|slots| {
        let mine = slots.iter().filter(|slot| std::ptr::addr_eq(Weak::as_ptr(&slot.owner), Arc::as_ptr(owner)));
        mine.filter_map(|slot| slot.thing.clone().downcast::<T>().ok()).next()
    });
    if let Some(found) = found {
        return found;
    }
    // Nothing is borrowed here: `make` and the destructors of what goes may use the shelf themselves.
    let thing = Rc::new(make());
    let owner: Arc<dyn Any + Send + Sync> = owner.clone();
    let gone: Vec<Slot> = SHELF.with_borrow_mut(|slots| {
        let gone = slots.extract_if(.., |slot| slot.owner.strong_count() == 0).collect();
        slots.push(Slot { owner: Arc::downgrade(&owner), thing: thing.clone() });
        gone
    });
    drop(gone);
    thing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_belong_to_their_owner_and_go_after_it() {
        let (a, b) = (Arc::new(1_u8), Arc::new(2_u8));
        let first = shelf(&a, || String::from("a"));
        assert!(Rc::ptr_eq(&first, &shelf(&a, || String::from("again"))));
        assert_eq!(*shelf(&b, || String::from("b")), "b");
        assert_eq!(*shelf(&a, || 7_u32), 7, "one thing of each type");
        drop(a);
        let c = Arc::new(3_u8);
        assert_eq!(*shelf(&c, || String::from("c")), "c");
        assert_eq!(Rc::strong_count(&first), 1, "the shelf let go of it");
    }
}
