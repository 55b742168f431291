//! A serialiser in front of another one: it refuses numbers that JSON has no word for, and notes the domain.

use std::fmt::Display;

use serde::ser::{self, Serialize, Serializer};

use super::{Notes, OwnDomain};

/// What serde_json calls a structure whose text it takes over unseen.
const RAW_NAMES: [&str; 2] = ["$serde_json::private::RawValue", "$serde_json::private::Number"];
const DOMAIN: &str = "domain";

/// Where a value stands in an event.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The event itself.
    Event,
    /// A key of the event.
    Key,
    /// The value of its member `domain`.
    Domain,
    Other,
}

/// A value, given to a serialiser by way of [`Through`].
pub(super) struct Value<'a, T: ?Sized> {
    pub value: &'a T,
    pub notes: &'a Notes,
    pub role: Role,
}

impl<T: Serialize + ?Sized> Serialize for Value<'_, T> {
    #[inline]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(Through { inner: serializer, notes: self.notes, role: self.role })
    }
}

struct Through<'a, S> {
    inner: S,
    notes: &'a Notes,
    role: Role,
}

/// A serialiser of members or elements; `role` is that of what they belong to.
struct Members<'a, C> {
    inner: C,
    notes: &'a Notes,
    role: Role,
}

fn not_finite<E: ser::Error>() -> E {
    E::custom("NaN and Infinity are no JSON; an event with them is refused")
}

impl<'a, S: Serializer> Through<'a, S> {
    /// A domain that is no string.
    #[inline]
    fn no_text(&self) {
        if self.role == Role::Domain {
            self.notes.domain.set(OwnDomain::NoText);
        }
    }

    fn value<'v, T: ?Sized>(&self, value: &'v T, role: Role) -> Value<'v, T>
    where
        'a: 'v,
    {
        Value { value, notes: self.notes, role }
    }

    fn see_text(&self, text: &str) {
        match self.role {
            Role::Domain => self.notes.set_domain(text),
            Role::Key => self.notes.key_is_domain.set(text == DOMAIN),
            Role::Event | Role::Other => {}
        }
    }

    /// The role of the value of this member.
    fn role_of(&self, key: &str) -> Role {
        if self.role == Role::Event && key == DOMAIN { Role::Domain } else { Role::Other }
    }
}

impl<'a, S: Serializer> Serializer for Through<'a, S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Members<'a, S::SerializeSeq>;
    type SerializeTuple = Members<'a, S::SerializeTuple>;
    type SerializeTupleStruct = Members<'a, S::SerializeTupleStruct>;
    type SerializeTupleVariant = Members<'a, S::SerializeTupleVariant>;
    type SerializeMap = Members<'a, S::SerializeMap>;
    type SerializeStruct = Members<'a, S::SerializeStruct>;
    type SerializeStructVariant = Members<'a, S::SerializeStructVariant>;

    #[inline]
    fn serialize_bool(self, value: bool) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_bool(value)
    }

    #[inline]
    fn serialize_i8(self, value: i8) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_i8(value)
    }

    #[inline]
    fn serialize_i16(self, value: i16) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_i16(value)
    }

    #[inline]
    fn serialize_i32(self, value: i32) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_i32(value)
    }

    #[inline]
    fn serialize_i64(self, value: i64) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_i64(value)
    }

    #[inline]
    fn serialize_i128(self, value: i128) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_i128(value)
    }

    #[inline]
    fn serialize_u8(self, value: u8) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_u8(value)
    }

    #[inline]
    fn serialize_u16(self, value: u16) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_u16(value)
    }

    #[inline]
    fn serialize_u32(self, value: u32) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_u32(value)
    }

    #[inline]
    fn serialize_u64(self, value: u64) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_u64(value)
    }

    #[inline]
    fn serialize_u128(self, value: u128) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_u128(value)
    }

    #[inline]
    fn serialize_char(self, value: char) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_char(value)
    }

    #[inline]
    fn serialize_bytes(self, value: &[u8]) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_bytes(value)
    }

    #[inline]
    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        self.no_text();
        if value.is_finite() { self.inner.serialize_f32(value) } else { Err(not_finite()) }
    }

    #[inline]
    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        self.no_text();
        if value.is_finite() { self.inner.serialize_f64(value) } else { Err(not_finite()) }
    }

    #[inline]
    fn serialize_str(self, value: &str) -> Result<S::Ok, S::Error> {
        self.see_text(value);
        self.inner.serialize_str(value)
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_none()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        let value = self.value(value, self.role);
        self.inner.serialize_some(&value)
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_unit()
    }

    fn serialize_unit_struct(self, name: &'static str) -> Result<S::Ok, S::Error> {
        self.no_text();
        self.inner.serialize_unit_struct(name)
    }

    fn serialize_unit_variant(self, name: &'static str, at: u32, variant: &'static str) -> Result<S::Ok, S::Error> {
        self.see_text(variant);
        self.inner.serialize_unit_variant(name, at, variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<S::Ok, S::Error> {
        let value = self.value(value, self.role);
        self.inner.serialize_newtype_struct(name, &value)
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        at: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.no_text();
        let value = self.value(value, self.role_of(variant));
        self.inner.serialize_newtype_variant(name, at, variant, &value)
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.no_text();
        Ok(Members { inner: self.inner.serialize_seq(len)?, notes: self.notes, role: Role::Other })
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.no_text();
        Ok(Members { inner: self.inner.serialize_tuple(len)?, notes: self.notes, role: Role::Other })
    }

    fn serialize_tuple_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.no_text();
        Ok(Members { inner: self.inner.serialize_tuple_struct(name, len)?, notes: self.notes, role: Role::Other })
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        at: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.no_text();
        let inner = self.inner.serialize_tuple_variant(name, at, variant, len)?;
        Ok(Members { inner, notes: self.notes, role: Role::Other })
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.no_text();
        Ok(Members { inner: self.inner.serialize_map(len)?, notes: self.notes, role: self.role })
    }

    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeStruct, S::Error> {
        self.no_text();
        if RAW_NAMES.contains(&name) {
            self.notes.is_raw.set(true);
        }
        Ok(Members { inner: self.inner.serialize_struct(name, len)?, notes: self.notes, role: self.role })
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        at: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.no_text();
        let inner = self.inner.serialize_struct_variant(name, at, variant, len)?;
        Ok(Members { inner, notes: self.notes, role: Role::Other })
    }

    fn collect_str<T: Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        match self.role {
            Role::Key | Role::Domain => self.serialize_str(&value.to_string()),
            Role::Event | Role::Other => self.inner.collect_str(value),
        }
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

impl<'a, C> Members<'a, C> {
    fn element<'v, T: ?Sized>(&self, value: &'v T) -> Value<'v, T>
    where
        'a: 'v,
    {
        Value { value, notes: self.notes, role: Role::Other }
    }

    fn member<'v, T: ?Sized>(&self, is_domain: bool, value: &'v T) -> Value<'v, T>
    where
        'a: 'v,
    {
        let role = if self.role == Role::Event && is_domain { Role::Domain } else { Role::Other };
        Value { value, notes: self.notes, role }
    }
}

impl<C: ser::SerializeSeq> ser::SerializeSeq for Members<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        let value = self.element(value);
        self.inner.serialize_element(&value)
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.inner.end()
    }
}

impl<C: ser::SerializeTuple> ser::SerializeTuple for Members<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    #[inline]
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        let value = self.element(value);
        self.inner.serialize_element(&value)
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.inner.end()
    }
}

impl<C: ser::SerializeTupleStruct> ser::SerializeTupleStruct for Members<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        let value = self.element(value);
        self.inner.serialize_field(&value)
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.inner.end()
    }
}

impl<C: ser::SerializeTupleVariant> ser::SerializeTupleVariant for Members<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        let value = self.element(value);
        self.inner.serialize_field(&value)
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.inner.end()
    }
}

impl<C: ser::SerializeStruct> ser::SerializeStruct for Members<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), C::Error> {
        let value = self.member(key == DOMAIN, value);
        self.inner.serialize_field(key, &value)
    }

    fn skip_field(&mut self, key: &'static str) -> Result<(), C::Error> {
        self.inner.skip_field(key)
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.inner.end()
    }
}

impl<C: ser::SerializeStructVariant> ser::SerializeStructVariant for Members<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    #[inline]
    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), C::Error> {
        let value = self.member(key == DOMAIN, value);
        self.inner.serialize_field(key, &value)
    }

    fn skip_field(&mut self, key: &'static str) -> Result<(), C::Error> {
        self.inner.skip_field(key)
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.inner.end()
    }
}

impl<C: ser::SerializeMap> ser::SerializeMap for Members<'_, C> {
    type Ok = C::Ok;
    type Error = C::Error;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), C::Error> {
        self.notes.key_is_domain.set(false);
        let role = if self.role == Role::Event { Role::Key } else { Role::Other };
        self.inner.serialize_key(&Value { value: key, notes: self.notes, role })
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), C::Error> {
        let value = self.member(self.notes.key_is_domain.get(), value);
        self.inner.serialize_value(&value)
    }

    fn end(self) -> Result<C::Ok, C::Error> {
        self.inner.end()
    }
}
