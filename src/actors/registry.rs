//! Names and groups: how actors that do not know each other meet.
//!
//! A name belongs to one actor at a time and is free again when that actor has ended. What a look-up gives is the
//! mailbox of that very actor, with a generation: after the actor has ended the mailbox is closed, and it never leads
//! to the next owner of the name. Rare use: one lock for all, not for data paths. Bounded: see `REGISTERED`, `GROUP_MEMBERS`.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::mailbox::{ActorId, Mail};
use super::mesh::Mesh;

/// Names and groups that may exist at once in a mesh.
pub const REGISTERED: usize = 65_536;
/// Members of one group.
pub const GROUP_MEMBERS: usize = 65_536;

/// A name as held by one actor: the same name held by a later actor has a higher generation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    /// The name.
    pub name: Arc<str>,
    /// Which holder of it, in the whole mesh and counted upwards.
    pub generation: u64,
}

/// Why a name or a membership was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistryError {
    /// Another living actor has the name.
    Taken,
    /// The bound on names or members is reached, or too many watch the actor.
    Full,
    /// The group exists for another type of message.
    OtherType,
    /// The actor has ended.
    Closed,
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Taken => "another actor has the name",
            Self::Full => "no more names or members are allowed",
            Self::OtherType => "the group is for another type of message",
            Self::Closed => "the actor has ended",
        })
    }
}

impl std::error::Error for RegistryError {}

/// The members of a group at one moment.
#[derive(Debug, Clone)]
pub struct Members<M> {
    /// Rises with each join and leave: equal generations mean equal members.
    pub generation: u64,
    /// Their mailboxes, in the order of their identities.
    pub mails: Vec<Mail<M>>,
}

#[derive(Default)]
pub(crate) struct Registry {
    names: BTreeMap<Arc<str>, Named>,
    groups: BTreeMap<Arc<str>, Group>,
    generation: u64,
}

struct Named {
    id: ActorId,
    generation: u64,
    mail: Box<dyn Any + Send>,
}

#[derive(Default)]
struct Group {
    generation: u64,
    members: BTreeMap<ActorId, Box<dyn Any + Send>>,
}

impl Mesh {
    /// Gives `name` to an actor until it ends.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn register<M: Send + 'static>(&self, name: &str, mail: &Mail<M>) -> Result<Name, RegistryError> {
        let id = mail.id();
        let name: Arc<str> = Arc::from(name);
        let generation = {
            let mut registry = self.inner.registry.lock();
            if registry.names.contains_key(&name) {
                return Err(RegistryError::Taken);
            }
            if registry.names.len() >= REGISTERED {
                return Err(RegistryError::Full);
            }
            registry.generation += 1;
            let generation = registry.generation;
            registry.names.insert(name.clone(), Named { id, generation, mail: Box::new(mail.clone()) });
            generation
        };
        let (inner, gone) = (Arc::downgrade(&self.inner), name.clone());
        let forget = move || {
            if let Some(inner) = inner.upgrade() {
                let mut registry = inner.registry.lock();
                if registry.names.get(&gone).is_some_and(|named| named.id == id) {
                    registry.names.remove(&gone);
                }
            }
        };
        if mail
            .shared
            .on_exit(Box::new({
                let forget = forget.clone();
                move |_| forget()
            }))
            .is_err()
        {
            forget();
            return Err(RegistryError::Full);
        }
        if mail.is_closed() { Err(RegistryError::Closed) } else { Ok(Name { name, generation }) }
    }

    /// Frees a name before its holder ends. Void if that holder no longer has it.
    pub fn unregister(&self, name: &Name) {
        let mut registry = self.inner.registry.lock();
        if registry.names.get(&name.name).is_some_and(|named| named.generation == name.generation) {
            registry.names.remove(&name.name);
        }
    }

    /// Who has `name` now. `None` if nobody has, or its messages are of another type.
    #[must_use]
    pub fn find<M: Send + 'static>(&self, name: &str) -> Option<(Name, Mail<M>)> {
        let registry = self.inner.registry.lock();
        let (name, named) = registry.names.get_key_value(name)?;
        let mail = named.mail.downcast_ref::<Mail<M>>()?;
        Some((Name { name: name.clone(), generation: named.generation }, mail.clone()))
    }

    /// Who `name` means: only ever the holder of that generation.
    #[must_use]
    pub fn resolve<M: Send + 'static>(&self, name: &Name) -> Option<Mail<M>> {
        self.find(&name.name).filter(|(found, _)| found.generation == name.generation).map(|(_, mail)| mail)
    }

    /// Makes an actor a member of a group until it ends or leaves. Joining twice changes nothing.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub fn join<M: Send + 'static>(&self, group: &str, mail: &Mail<M>) -> Result<(), RegistryError> {
        let id = mail.id();
        let name: Arc<str> = Arc::from(group);
        {
            let mut registry = self.inner.registry.lock();
            if registry.groups.len() >= REGISTERED && !registry.groups.contains_key(&name) {
                return Err(RegistryError::Full);
            }
            registry.generation += 1;
            let generation = registry.generation;
            let group = registry.groups.entry(name.clone()).or_default();
            if group.members.contains_key(&id) {
                return Ok(());
            }
            if group.members.len() >= GROUP_MEMBERS {
                return Err(RegistryError::Full);
            }
            if group.members.first_key_value().is_some_and(|(_, member)| !member.is::<Mail<M>>()) {
                return Err(RegistryError::OtherType);
            }
            group.generation = generation;
            group.members.insert(id, Box::new(mail.clone()));
        }
        let mesh = Arc::downgrade(&self.inner);
        let gone = name.clone();
        let watching = mail.shared.on_exit(Box::new(move |_| {
            if let Some(inner) = mesh.upgrade() {
                inner.registry.lock().remove_member(&gone, id);
            }
        }));
        if watching.is_err() {
            self.inner.registry.lock().remove_member(&name, id);
            return Err(RegistryError::Full);
        }
        Ok(())
    }

    /// Ends a membership. Void if there is none.
    pub fn leave<M: Send + 'static>(&self, group: &str, mail: &Mail<M>) {
        self.inner.registry.lock().remove_member(group, mail.id());
    }

    /// The members of a group now. To be kept by whoever sends often, and renewed when
    /// [`group_generation`](Self::group_generation) has changed.
    #[must_use]
    pub fn members<M: Send + 'static>(&self, group: &str) -> Members<M> {
        let registry = self.inner.registry.lock();
        let Some(group) = registry.groups.get(group) else { return Members { generation: 0, mails: Vec::new() } };
        Members {
            generation: group.generation,
            mails: group.members.values().filter_map(|m| m.downcast_ref::<Mail<M>>().cloned()).collect(),
        }
    }

    /// The generation of a group: 0 while it has no members.
    #[must_use]
    pub fn group_generation(&self, group: &str) -> u64 {
        self.inner.registry.lock().groups.get(group).map_or(0, |group| group.generation)
    }
}

impl Registry {
    fn remove_member(&mut self, name: &str, id: ActorId) {
        let Some(group) = self.groups.get_mut(name) else { return };
        if group.members.remove(&id).is_none() {
            return;
        }
        self.generation += 1;
        group.generation = self.generation;
        if group.members.is_empty() {
            self.groups.remove(name);
        }
    }
}
