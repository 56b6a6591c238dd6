//! A body as the validator reads it: the text itself, under a budget.
//!
//! The validator cannot be stopped, but it can be told that there is nothing more: once the
//! budget is used up every value reads as `null` and has nothing in it, so what is left to do
//! ends by itself. Its verdict then counts for nothing. Each value that is reached costs what
//! can apply to one value at most ([`super::bounds`]), so the budget bounds the whole.

use std::borrow::Cow;
use std::cell::Cell;

use jsonschema::JsonType;
use jsonschema::json::{Array, Json, Node, NodeIdentity, Object, cmp, unique};
use serde_json::Value;

use crate::json_text::{Children, JsonText, Kind, NodeId};

/// Text that is read at the price of one step.
const BYTES_PER_STEP: usize = 32;
/// Members that are passed over at the price of one step.
const MEMBERS_PER_STEP: u32 = 4;

/// The representation.
pub(super) enum Text {}

/// One body, and what may still be done with it.
pub(super) struct Instance<'a> {
    document: &'a JsonText<'a>,
    steps_left: Cell<u32>,
    /// What reaching one value costs.
    value_cost: u32,
}

impl<'a> Instance<'a> {
    pub(super) fn new(document: &'a JsonText<'a>, steps: u32, value_cost: u32) -> Self {
        Self {
            document,
            steps_left: Cell::new(steps),
            value_cost,
        }
    }

    pub(super) fn root(&'a self) -> At<'a> {
        At::Value {
            instance: self,
            id: NodeId::ROOT,
        }
    }

    /// Whether the budget is used up, so that nothing read since means anything.
    pub(super) fn is_spent(&self) -> bool {
        self.steps_left.get() == 0
    }

    /// Pays; false where nothing is left.
    fn pay(&self, steps: u32) -> bool {
        let left = self.steps_left.get().saturating_sub(steps);
        self.steps_left.set(left);
        left > 0
    }
}

/// A value of a body, or a member's name.
#[derive(Clone)]
pub(super) enum At<'a> {
    Value {
        instance: &'a Instance<'a>,
        id: NodeId,
    },
    Name(&'a str),
}

impl<'a> At<'a> {
    fn kind(&self) -> Kind {
        match self {
            At::Value { instance, .. } if instance.is_spent() => Kind::Null,
            At::Value { instance, id } => instance.document.kind(*id),
            At::Name(_) => Kind::String,
        }
    }

    /// The value where it is of a kind, after its text has been paid for.
    fn read(&self, kind: Kind) -> Option<&'a str> {
        match self {
            At::Value { instance, id } if self.kind() == kind => {
                let text = instance.document.raw(*id);
                let steps = u32::try_from(text.len() / BYTES_PER_STEP).unwrap_or(u32::MAX);
                instance.pay(steps).then_some(text)
            }
            _ => None,
        }
    }
}

impl Json for Text {
    type Node<'a> = At<'a>;
    type PreparedKey = String;
    type StringBuffer = ();

    // A lookup passes over the members before the one that it finds.
    const KEYS_PER_LOOKUP: usize = 64;
    const ACYCLIC: bool = true;

    fn prepare_key(key: &str) -> String {
        key.to_owned()
    }

    fn with_string_node<T>((): &mut (), string: &str, f: impl FnOnce(At<'_>) -> T) -> T {
        f(At::Name(string))
    }
}

impl<'a> Node<'a, Text> for At<'a> {
    type Object = Inside<'a>;
    type Array = Inside<'a>;
    type Number = serde_json::Number;

    fn as_object(&self) -> Option<Inside<'a>> {
        self.inside(Kind::Object)
    }

    fn as_array(&self) -> Option<Inside<'a>> {
        self.inside(Kind::Array)
    }

    fn as_string(&self) -> Option<Cow<'a, str>> {
        match self {
            At::Name(name) => Some(Cow::Borrowed(name)),
            At::Value { instance, id } => {
                self.read(Kind::String)?;
                Some(instance.document.string(*id))
            }
        }
    }

    fn as_number(&self) -> Option<serde_json::Number> {
        self.read(Kind::Number).map(number)
    }

    fn as_boolean(&self) -> Option<bool> {
        self.read(Kind::Bool).map(|text| text == "true")
    }

    fn is_null(&self) -> bool {
        self.kind() == Kind::Null
    }

    fn is_number(&self) -> bool {
        self.kind() == Kind::Number
    }

    fn json_type(&self) -> JsonType {
        match self.kind() {
            Kind::Null => JsonType::Null,
            Kind::Bool => JsonType::Boolean,
            Kind::Number => JsonType::Number,
            Kind::String => JsonType::String,
            Kind::Array => JsonType::Array,
            Kind::Object => JsonType::Object,
        }
    }

    fn equals_value(&self, expected: &Value) -> bool {
        cmp::equal(&self.value(), expected)
    }

    /// Only errors ask for it, and what is wrong is told without the value that is wrong: here it
    /// says whether the error counts.
    fn to_value(&self) -> Cow<'a, Value> {
        Cow::Owned(Value::Bool(match self {
            At::Value { instance, .. } => !instance.is_spent(),
            At::Name(_) => true,
        }))
    }

    fn identity(&self) -> Option<NodeIdentity> {
        match self {
            At::Value { instance, id } => {
                let address = std::ptr::from_ref(*instance) as usize;
                Some(NodeIdentity::tagged(address, id.row()))
            }
            At::Name(_) => None,
        }
    }
}

impl<'a> At<'a> {
    /// The value itself, to compare it.
    fn value(&self) -> Value {
        match self.kind() {
            Kind::Null => Value::Null,
            Kind::Bool => self.as_boolean().into(),
            Kind::Number => self.as_number().map_or(Value::Null, Value::Number),
            Kind::String => self.as_string().map_or(Value::Null, |text| text.into()),
            Kind::Array => {
                let elements = self.as_array().into_iter().flat_map(Elements);
                elements.map(|element| element.value()).collect()
            }
            Kind::Object => {
                let members = self.as_object().into_iter().flat_map(Members);
                let owned = members.map(|(name, value)| (name.into_owned(), value.value()));
                Value::Object(owned.collect())
            }
        }
    }

    fn inside(&self, kind: Kind) -> Option<Inside<'a>> {
        match self {
            At::Value { instance, id } if self.kind() == kind => Some(Inside {
                instance,
                id: *id,
                children: instance.document.children(*id),
            }),
            _ => None,
        }
    }
}

/// A number whose range is known to be that of a double.
fn number(text: &str) -> serde_json::Number {
    text.parse().unwrap_or_else(|_| 0.into())
}

/// The members or elements of a value; also the iterator over them.
pub(super) struct Inside<'a> {
    instance: &'a Instance<'a>,
    id: NodeId,
    children: Children<'a>,
}

impl<'a> Inside<'a> {
    fn count(&self) -> usize {
        let count = self.instance.document.children(self.id).count();
        let steps = u32::try_from(count).unwrap_or(u32::MAX) / MEMBERS_PER_STEP;
        match self.instance.pay(steps) {
            true => count,
            false => 0,
        }
    }

    fn next_id(&mut self) -> Option<NodeId> {
        if self.instance.is_spent() {
            return None;
        }
        let id = self.children.next()?;
        self.instance.pay(self.instance.value_cost).then_some(id)
    }

    fn at(&self, id: NodeId) -> At<'a> {
        At::Value {
            instance: self.instance,
            id,
        }
    }
}

/// See [`Object::members`].
pub(super) struct Members<'a>(Inside<'a>);

impl<'a> Iterator for Members<'a> {
    type Item = (Cow<'a, str>, At<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let id = self.0.next_id()?;
        Some((self.0.instance.document.name(id), self.0.at(id)))
    }
}

/// See [`Array::elements`].
pub(super) struct Elements<'a>(Inside<'a>);

impl<'a> Iterator for Elements<'a> {
    type Item = At<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let id = self.0.next_id()?;
        Some(self.0.at(id))
    }
}

impl<'a> Object<'a, Text> for Inside<'a> {
    type Node = At<'a>;
    type MemberName = Cow<'a, str>;
    type MembersIter = Members<'a>;

    fn len(&self) -> usize {
        self.count()
    }

    fn get(&self, key: &String) -> Option<At<'a>> {
        let Instance { document, .. } = self.instance;
        let mut passed = 0;
        let mut children = document.children(self.id).inspect(|_| passed += 1);
        let found = children.find(|id| document.is_named(*id, key));
        let cost = found.map_or(0, |_| self.instance.value_cost);
        let steps = (passed / MEMBERS_PER_STEP)
            .saturating_add(cost)
            .saturating_add(1);
        found
            .filter(|_| self.instance.pay(steps))
            .map(|id| self.at(id))
    }

    fn members(&self) -> Members<'a> {
        Members(self.clone())
    }
}

impl<'a> Array<'a, Text> for Inside<'a> {
    type Node = At<'a>;
    type ElementsIter = Elements<'a>;

    fn len(&self) -> usize {
        self.count()
    }

    fn elements(&self) -> Elements<'a> {
        Elements(self.clone())
    }

    fn is_unique(&self) -> bool {
        let values: Vec<Cow<'a, Value>> = self
            .elements()
            .map(|element| Cow::Owned(element.value()))
            .collect();
        unique::is_unique(&values)
    }
}

impl Clone for Inside<'_> {
    fn clone(&self) -> Self {
        Self {
            instance: self.instance,
            id: self.id,
            children: self.children.clone(),
        }
    }
}
