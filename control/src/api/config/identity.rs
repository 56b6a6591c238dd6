//! Which object an entry of the document means.
//!
//! Ids are issued by control. One that nothing has here is mistyped, of what was deleted since, or
//! of another installation. Only who says that it is the last (`import`) gets something new by it:
//! another id is issued in its place, the answer tells which, and within the document the old one
//! stands for it. It is made of the old one and of the organisation, so that the same document,
//! applied again, means the same objects.

use proto::id::{CredentialId, OrgId, ProxyId, TargetId};
use proto::object::ObjectId;

use super::apply::Work;
use super::entry::Model;
use super::stored::Kind;

/// The bytes of an id that tell its time.
const TIME_BYTES: usize = 6;

/// What an entry means.
pub(super) enum Meant {
    /// An object that is there.
    Stored(ObjectId),
    /// A new one, with the id that was issued for it in the place of another.
    New(Option<ObjectId>),
}

impl Work<'_> {
    /// What an entry means; nothing when that cannot be told.
    pub(super) fn identify(
        &mut self,
        pointer: &str,
        id: Option<&str>,
        model: &Model,
    ) -> Option<Meant> {
        let meant = match id {
            Some(text) => self.given(pointer, text, model)?,
            None => self.called(pointer, model)?,
        };
        let is_taken = self.named.contains_key(&model.key());
        let twice = match &meant {
            Meant::Stored(id) | Meant::New(Some(id)) => !self.kept.insert(*id),
            Meant::New(None) => false,
        };
        if twice || (is_taken && id.is_none()) {
            let detail = format!("another entry is `{}` already", model.name());
            self.refuse(format!("{pointer}/name"), "duplicate", detail);
            return None;
        }
        Some(meant)
    }

    /// What an entry with an id means.
    fn given(&mut self, pointer: &str, text: &str, model: &Model) -> Option<Meant> {
        let (kind, words) = (model.kind(), model.kind().words());
        let detail = match self.by_id(text, kind) {
            Some(Meant::New(_)) if !self.manner.imports => {
                let named = match model.candidates(&self.stored)[..] {
                    [one] => format!(" (`{}` is {one})", model.name()),
                    _ => String::new(),
                };
                format!(
                    "no {words} here have this id{named}: correct it, or leave `id` out; where the \
                     document is of another installation, say so (`import`), and it gets an id of \
                     its own"
                )
            }
            Some(meant) => return Some(meant),
            None => format!("is no id of {words}; leave `id` out for a new one"),
        };
        self.refuse(format!("{pointer}/id"), "not-found", detail);
        None
    }

    /// What an entry without one means.
    fn called(&mut self, pointer: &str, model: &Model) -> Option<Meant> {
        let candidates = model.candidates(&self.stored);
        if candidates.len() > 1 {
            let (count, words) = (candidates.len(), model.kind().words());
            let name = model.name();
            let detail = format!(
                "{count} {words} are named `{name}`; add the `id` of the one that is meant"
            );
            self.refuse(format!("{pointer}/name"), "ambiguous", detail);
            return None;
        }
        let found = candidates.first().copied();
        Some(found.map_or(Meant::New(None), Meant::Stored))
    }

    /// The object of a kind that an id means here.
    fn by_id(&mut self, text: &str, kind: Kind) -> Option<Meant> {
        let given: ObjectId = text.parse().ok()?;
        let of = |id| Some(Kind::of(&self.config.object(id)?.body) == Some(kind));
        if let Some(is_of_kind) = of(given) {
            return is_of_kind.then_some(Meant::Stored(given));
        }
        let issued = reissued(self.config.org, given).filter(|_| kind.has(given))?;
        let meant = match of(issued) {
            Some(true) => Meant::Stored(issued),
            Some(false) => return None,
            None => Meant::New(Some(issued)),
        };
        self.reissued.insert(given, (issued, kind));
        Some(meant)
    }
}

/// The id that is issued in the place of one that nothing has in an organisation: of the same time,
/// so that what was made later still comes later.
fn reissued(org: OrgId, id: ObjectId) -> Option<ObjectId> {
    let hash = blake3::hash(format!("{id} in {org}").as_bytes());
    let issued = |bits: u128| {
        let mut bytes = bits.to_be_bytes();
        for (byte, hashed) in bytes.iter_mut().zip(hash.as_bytes()).skip(TIME_BYTES) {
            *byte = *hashed;
        }
        let uuid = uuid::Builder::from_bytes(bytes).with_version(uuid::Version::SortRand);
        uuid.with_variant(uuid::Variant::RFC4122)
            .into_uuid()
            .as_u128()
    };
    Some(match id {
        ObjectId::Target(id) => ObjectId::Target(TargetId::from_bits(issued(id.bits()))),
        ObjectId::Credential(id) => {
            ObjectId::Credential(CredentialId::from_bits(issued(id.bits())))
        }
        ObjectId::Proxy(id) => ObjectId::Proxy(ProxyId::from_bits(issued(id.bits()))),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_issued_anew_the_same_way_for_each_organisation() {
        let (one, other) = (OrgId::new(), OrgId::new());
        for given in [
            ObjectId::Target(TargetId::new()),
            ObjectId::Credential(CredentialId::new()),
            ObjectId::Proxy(ProxyId::new()),
        ] {
            let issued = reissued(one, given).unwrap();
            assert_eq!(reissued(one, given), Some(issued));
            assert_ne!(reissued(other, given), Some(issued));
            let (issued, given) = (issued.to_string(), given.to_string());
            assert_ne!(issued, given);
            // Kind and time stay: 45 of its 48 bits are the first nine digits.
            assert_eq!(issued[..13], given[..13]);
        }
        assert_eq!(reissued(one, ObjectId::Org(one)), None);
    }
}
