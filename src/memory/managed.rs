//! A value with several holders, of whom each may go on with a version of its own.
//!
//! A clone is a snapshot and costs a count. Who edits, edits in place while it is the only holder and gets a copy of
//! its own first otherwise, so nobody ever sees another's edits. There is no lock, and reading cannot fail.

use std::fmt;
use std::ops::Deref;

use super::policy::{AtomicPolicy, SingleThreaded};

/// A value that is copied when it is edited while others hold it.
///
/// ```
/// use portway::memory::Managed;
///
/// let mut list: Managed<Vec<u32>> = Managed::new(vec![1, 2]);
/// let before = list.clone();
/// list.make_mut().push(3);
/// assert_eq!((&**before, &**list), (&[1, 2][..], &[1, 2, 3][..]));
/// ```
pub struct Managed<T, P: AtomicPolicy = SingleThreaded>(P::Ptr<T>);

impl<T, P: AtomicPolicy> Managed<T, P> {
    /// A value with one holder.
    ///
    /// ```
    /// # use portway::memory::{Managed, ThreadSafe};
    /// let name: Managed<String, ThreadSafe> = Managed::new("here".to_owned());
    /// assert_eq!(*name, "here");
    /// ```
    pub fn new(value: T) -> Self {
        Self(P::ptr(value))
    }

    /// The value, if nobody else holds it.
    ///
    /// ```
    /// # use portway::memory::Managed;
    /// let mut a: Managed<u8> = Managed::new(1);
    /// let b = a.clone();
    /// assert!(a.unique().is_none());
    /// drop(b);
    /// assert!(a.unique().is_some());
    /// ```
    pub fn unique(&mut self) -> Option<&mut T> {
        P::get_mut(&mut self.0)
    }

    /// The value to edit: in place if nobody else holds it, else a clone that is this holder's own from now on. If
    /// cloning panics, nothing has changed.
    ///
    /// ```
    /// # use portway::memory::Managed;
    /// let mut a: Managed<u8> = Managed::new(1);
    /// let b = a.clone();
    /// *a.make_mut() = 2;
    /// assert_eq!((*a, *b), (2, 1));
    /// ```
    pub fn make_mut(&mut self) -> &mut T
    where
        T: Clone,
    {
        P::make_mut(&mut self.0)
    }

    /// The edited value, as [`make_mut`](Self::make_mut). If `edit` panics, this holder's version is gone with it, and
    /// those of others are as they were.
    ///
    /// ```
    /// # use portway::memory::Managed;
    /// let a: Managed<Vec<u8>> = Managed::new(vec![1]);
    /// assert_eq!(*a.update(|list| list.push(2)), [1, 2]);
    /// ```
    #[must_use]
    pub fn update(mut self, edit: impl FnOnce(&mut T)) -> Self
    where
        T: Clone,
    {
        edit(self.make_mut());
        self
    }

    /// The value itself, say a buffer to be filled anew, if nobody else holds it. Two holders who ask at the same time
    /// may both be refused: see [`give_up`](Self::give_up).
    ///
    /// # Errors
    /// The holder again, if there are others.
    ///
    /// ```
    /// # use portway::memory::Managed;
    /// let a: Managed<Vec<u8>> = Managed::new(vec![1]);
    /// let b = a.clone();
    /// let a = a.reclaim().unwrap_err();
    /// drop(b);
    /// assert_eq!(a.reclaim().unwrap(), [1]);
    /// ```
    pub fn reclaim(self) -> Result<T, Self> {
        P::try_unwrap(self.0).map_err(Self)
    }

    /// Gives the holder up; when all are given up, exactly one of them gets the value: the last.
    ///
    /// ```
    /// # use portway::memory::Managed;
    /// let a: Managed<u8> = Managed::new(1);
    /// let b = a.clone();
    /// assert_eq!((a.give_up(), b.give_up()), (None, Some(1)));
    /// ```
    #[must_use = "the value may be in there"]
    pub fn give_up(self) -> Option<T> {
        P::into_inner(self.0)
    }

    /// Whether both hold one value, not merely equal ones.
    ///
    /// ```
    /// # use portway::memory::Managed;
    /// let a: Managed<u8> = Managed::new(1);
    /// assert!(a.same(&a.clone()));
    /// assert!(!a.same(&Managed::new(1)));
    /// ```
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        P::same(&self.0, &other.0)
    }
}

impl<T, P: AtomicPolicy> Clone for Managed<T, P> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T, P: AtomicPolicy> Deref for Managed<T, P> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Default, P: AtomicPolicy> Default for Managed<T, P> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T, P: AtomicPolicy> From<T> for Managed<T, P> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

impl<T: PartialEq, P: AtomicPolicy> PartialEq for Managed<T, P> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq, P: AtomicPolicy> Eq for Managed<T, P> {}

impl<T: fmt::Debug, P: AtomicPolicy> fmt::Debug for Managed<T, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;
    use static_assertions::{assert_impl_all, assert_not_impl_any};

    use super::super::policy::ThreadSafe;
    use super::*;

    assert_impl_all!(Managed<Vec<u8>, ThreadSafe>: Send, Sync);
    assert_not_impl_any!(Managed<Vec<u8>, SingleThreaded>: Send, Sync);
    assert_not_impl_any!(Managed<std::cell::Cell<u8>, ThreadSafe>: Send, Sync);

    /// Counts how often it was cloned.
    #[derive(Debug, Default)]
    struct Cloned<'a> {
        n: u32,
        count: Option<&'a AtomicUsize>,
    }

    impl Clone for Cloned<'_> {
        fn clone(&self) -> Self {
            if let Some(count) = self.count {
                count.fetch_add(1, Ordering::Relaxed);
            }
            assert_ne!(self.n, 666, "told to");
            Self { n: self.n, count: self.count }
        }
    }

    fn edits_where_it_may<P: AtomicPolicy>() {
        let clones = AtomicUsize::new(0);
        let mut a: Managed<Cloned<'_>, P> = Managed::new(Cloned { n: 1, count: Some(&clones) });
        let at = std::ptr::from_ref(&*a);
        a.make_mut().n = 2;
        let a = a.update(|value| value.n += 1);
        assert_eq!((std::ptr::from_ref(&*a), a.n, clones.load(Ordering::Relaxed)), (at, 3, 0), "in place");

        let b = a.clone();
        let (again, mut a) = (a.clone(), a.update(|value| value.n = 9));
        assert_eq!(clones.load(Ordering::Relaxed), 1);
        let own = std::ptr::from_ref(&*a);
        a.make_mut().n = 10;
        assert_eq!((std::ptr::from_ref(&*a), clones.load(Ordering::Relaxed)), (own, 1), "cloned once");
        assert!(again.same(&b) && !a.same(&b));
        assert_eq!((a.n, b.n, std::ptr::from_ref(&*b)), (10, 3, at));

        let b = b.reclaim().unwrap_err();
        assert!(again.give_up().is_none());
        assert_eq!(b.reclaim().unwrap().n, 3);
        assert_eq!(clones.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn the_only_holder_edits_in_place_and_others_clone_once() {
        edits_where_it_may::<SingleThreaded>();
        edits_where_it_may::<ThreadSafe>();
    }

    fn survives_panics<P: AtomicPolicy>() {
        let a: Managed<Cloned<'_>, P> = Managed::new(Cloned { n: 1, count: None });
        let b = a.clone();
        let edit = catch_unwind(AssertUnwindSafe(|| {
            let _never = a.update(|value| {
                value.n = 2;
                panic!("told to");
            });
        }));
        assert!(edit.is_err());
        assert_eq!(b.reclaim().map(|value| value.n).ok(), Some(1), "nobody else saw it, and nothing leaked");

        let mut a: Managed<Cloned<'_>, P> = Managed::new(Cloned { n: 666, count: None });
        let b = a.clone();
        assert!(catch_unwind(AssertUnwindSafe(|| a.make_mut().n = 1)).is_err());
        assert_eq!((a.n, b.n, a.same(&b)), (666, 666, true));
        drop(a);
        assert_eq!(b.reclaim().map(|value| value.n).ok(), Some(666));
    }

    #[test]
    fn a_panic_of_the_caller_changes_nothing_for_others() {
        survives_panics::<SingleThreaded>();
        survives_panics::<ThreadSafe>();
    }

    #[test]
    fn values_without_a_size_are_values() {
        let mut a: Managed<(), ThreadSafe> = Managed::new(());
        let b = a.clone();
        a.make_mut();
        assert!(!a.same(&b) && b.reclaim().is_ok());
    }

    #[test]
    fn of_holders_given_up_at_the_same_time_one_gets_the_value() {
        for _ in 0..if cfg!(miri) { 10 } else { 200 } {
            let a: Managed<Vec<u8>, ThreadSafe> = Managed::new(vec![1]);
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let mine = a.clone();
                    std::thread::spawn(move || mine.give_up())
                })
                .collect();
            let mine = a.give_up();
            let got = threads.into_iter().filter_map(|thread| thread.join().unwrap()).chain(mine).count();
            assert_eq!(got, 1);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Clone(usize, usize),
        Push(usize, u8),
        Update(usize, u8),
        Unique(usize, u8),
        Reclaim(usize),
        GiveUp(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..5usize, 0..5usize).prop_map(|(from, to)| Step::Clone(from, to)),
            (0..5usize, any::<u8>()).prop_map(|(at, n)| Step::Push(at, n)),
            (0..5usize, any::<u8>()).prop_map(|(at, n)| Step::Update(at, n)),
            (0..5usize, any::<u8>()).prop_map(|(at, n)| Step::Unique(at, n)),
            (0..5usize).prop_map(Step::Reclaim),
            (0..5usize).prop_map(Step::GiveUp),
        ];
        proptest::collection::vec(step, 1..if cfg!(miri) { 25 } else { 100 })
    }

    /// Five holders against five plain vectors; which of them share is known by a number.
    fn as_the_model<P: AtomicPolicy>(steps: &[Step]) -> Result<(), TestCaseError> {
        let mut ours: Vec<Managed<Vec<u8>, P>> = (0..5).map(|_| Managed::default()).collect();
        let mut model: Vec<(Vec<u8>, usize)> = (0..5).map(|n| (Vec::new(), n)).collect();
        let mut next = 5;
        for step in steps {
            let alone =
                |model: &[(Vec<u8>, usize)], at: usize| model.iter().filter(|m| m.1 == model[at].1).count() == 1;
            match *step {
                Step::Clone(from, to) => {
                    ours[to] = ours[from].clone();
                    model[to] = model[from].clone();
                }
                Step::Push(at, n) | Step::Update(at, n) => {
                    let (shared, before) = (!alone(&model, at), std::ptr::from_ref(&*ours[at]));
                    if matches!(step, Step::Push(..)) {
                        ours[at].make_mut().push(n);
                    } else {
                        let value = std::mem::take(&mut ours[at]);
                        ours[at] = value.update(|list| list.push(n));
                    }
                    prop_assert_eq!(shared, before != std::ptr::from_ref(&*ours[at]));
                    model[at].0.push(n);
                    model[at].1 = next;
                    next += 1;
                }
                Step::Unique(at, n) => {
                    let unique = ours[at].unique();
                    prop_assert_eq!(unique.is_some(), alone(&model, at));
                    if let Some(list) = unique {
                        list.insert(0, n);
                        model[at].0.insert(0, n);
                    }
                }
                Step::Reclaim(at) | Step::GiveUp(at) => {
                    let value = std::mem::take(&mut ours[at]);
                    let got = if matches!(step, Step::Reclaim(_)) { value.reclaim().ok() } else { value.give_up() };
                    prop_assert_eq!(got, alone(&model, at).then(|| model[at].0.clone()));
                    model[at] = (Vec::new(), next);
                    next += 1;
                }
            }
            for (ours, (model, _)) in ours.iter().zip(&model) {
                prop_assert_eq!(&**ours, model);
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn it_behaves_as_if_everything_were_cloned(steps in steps()) {
            as_the_model::<SingleThreaded>(&steps)?;
            as_the_model::<ThreadSafe>(&steps)?;
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 32 }))]

        /// Three threads hand values around and edit them; each value travels with a plain copy of what it must be.
        #[test]
        fn threads_never_see_the_edits_of_others(scripts in proptest::collection::vec(steps(), 3)) {
            type Travelling = (Managed<Vec<u8>, ThreadSafe>, Vec<u8>);
            let common: parking_lot::Mutex<Vec<Travelling>> =
                parking_lot::Mutex::new((0..5).map(|_| (Managed::default(), Vec::new())).collect());
            std::thread::scope(|scope| {
                for script in &scripts {
                    let common = &common;
                    scope.spawn(move || {
                        for step in script {
                            let (Step::Clone(at, _)
                            | Step::Push(at, _)
                            | Step::Update(at, _)
                            | Step::Unique(at, _)
                            | Step::Reclaim(at)
                            | Step::GiveUp(at)) = *step;
                            let (mut value, mut copy) = common.lock()[at].clone();
                            assert_eq!(*value, copy);
                            match *step {
                                Step::Clone(_, to) => common.lock()[to] = (value, copy),
                                Step::Push(_, n) | Step::Update(_, n) | Step::Unique(_, n) => {
                                    value.make_mut().push(n);
                                    copy.push(n);
                                    assert_eq!(*value, copy);
                                    common.lock()[at] = (value, copy);
                                }
                                Step::Reclaim(_) => assert!(value.reclaim().map_or_else(|v| *v == copy, |v| v == copy)),
                                Step::GiveUp(_) => assert!(value.give_up().is_none_or(|v| v == copy)),
                            }
                        }
                    });
                }
            });
            for (value, copy) in common.lock().iter() {
                prop_assert_eq!(&**value, copy);
            }
        }
    }
}
