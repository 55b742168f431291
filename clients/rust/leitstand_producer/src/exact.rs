//! An event as JSON on one line, exactly as it is, or refused: no number becomes `null` on the way, and no
//! white space of raw JSON ends a line.

mod serializer;

use std::cell::{Cell, Ref, RefCell};
use std::io;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::error::JsonError;
use serializer::{Role, Value};

/// The member `domain` of an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum OwnDomain {
    #[default]
    Absent,
    /// A string; [`Notes::domain_text`] has it.
    Text,
    /// `null`, a number, or another value that names nothing.
    NoText,
}

/// What was seen of an event while it was written.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    is_raw: Cell<bool>,
    key_is_domain: Cell<bool>,
    domain: Cell<OwnDomain>,
    domain_text: RefCell<String>,
}

impl Notes {
    pub fn domain(&self) -> OwnDomain {
        self.domain.get()
    }

    /// As the event has it.
    pub fn domain_text(&self) -> Ref<'_, str> {
        Ref::map(self.domain_text.borrow(), String::as_str)
    }

    fn forget(&self) {
        self.is_raw.set(false);
        self.domain.set(OwnDomain::Absent);
    }

    fn set_domain(&self, text: &str) {
        self.domain.set(OwnDomain::Text);
        let mut known = self.domain_text.borrow_mut();
        known.clear();
        known.push_str(text);
    }
}

/// Puts an event behind `lines`, without a newline, and says what was seen of it.
pub(crate) fn write<T: Serialize + ?Sized>(lines: &mut Vec<u8>, event: &T, notes: &Notes) -> Result<(), JsonError> {
    let start = lines.len();
    notes.forget();
    let event = Value { value: event, notes, role: Role::Event };
    serde_json::to_writer(Careful(lines), &event)?;
    if notes.is_raw.get() || lines[start..].iter().any(|byte| *byte < b' ') {
        let compact = compact(&lines[start..])?;
        lines.truncate(start);
        lines.extend_from_slice(&compact);
        match domain_of(&compact) {
            Some(Some(text)) => notes.set_domain(&text),
            Some(None) => notes.domain.set(OwnDomain::Absent),
            None => notes.domain.set(OwnDomain::NoText),
        }
    }
    Ok(())
}

/// Is this, without its newline, what a file of the spool may hold as a line?
pub(crate) fn is_event(line: &[u8]) -> bool {
    let is_object = line.trim_ascii_start().starts_with(b"{");
    is_object && std::str::from_utf8(line).is_ok() && serde_json::from_slice::<IgnoredAny>(line).is_ok()
}

/// `domain` of an object; `None` if it is no string.
fn domain_of(event: &[u8]) -> Option<Option<String>> {
    #[derive(Deserialize)]
    struct Head {
        #[serde(default, deserialize_with = "text")]
        domain: Option<String>,
    }
    fn text<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<String>, D::Error> {
        String::deserialize(value).map(Some)
    }
    serde_json::from_slice::<Head>(event).ok().map(|head| head.domain)
}

/// Memory that cannot be had is an error of this event, not the end of the program.
struct Careful<'a>(&'a mut Vec<u8>);

impl io::Write for Careful<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_reserve(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.write(bytes).map(|_| ())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Text that somebody else made, without its white space; refused if it is not what the service would store.
fn compact(text: &[u8]) -> Result<Vec<u8>, JsonError> {
    let refused = |why: &str| JsonError::new(format!("raw JSON {why}"));
    std::str::from_utf8(text).map_err(|_| refused("is not UTF-8"))?;
    serde_json::from_slice::<IgnoredAny>(text)?;
    let mut out = Vec::new();
    out.try_reserve(text.len()).map_err(|_| refused("needs memory that is not there"))?;
    let mut at = 0;
    while let Some(&byte) = text.get(at) {
        let length = match byte {
            b' ' | b'\t' | b'\n' | b'\r' => {
                at += 1;
                continue;
            }
            b'"' => string_length(&text[at..]).ok_or_else(|| refused("holds half of a surrogate pair"))?,
            b'-' | b'0'..=b'9' => {
                let is_part = |b: &u8| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
                let number: Vec<u8> = text[at..].iter().copied().take_while(is_part).collect();
                let value = std::str::from_utf8(&number).ok().and_then(|number| number.parse::<f64>().ok());
                if !value.is_some_and(f64::is_finite) {
                    return Err(refused("holds a number that is too large for a double"));
                }
                number.len()
            }
            _ => 1,
        };
        out.extend_from_slice(&text[at..at + length]);
        at += length;
    }
    Ok(out)
}

/// The bytes of a string with its quotes. Of valid JSON; `None` for half a surrogate pair.
fn string_length(text: &[u8]) -> Option<usize> {
    let unit = |at: usize| {
        let digits = text.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()
    };
    let mut at = 1;
    loop {
        match (text.get(at)?, unit(at)) {
            (b'"', _) => return Some(at + 1),
            (_, Some(0xD800..=0xDBFF)) => match unit(at + 6) {
                Some(0xDC00..=0xDFFF) => at += 12,
                _ => return None,
            },
            (_, Some(0xDC00..=0xDFFF)) => return None,
            (_, Some(_)) => at += 6,
            (b'\\', None) => at += 2,
            _ => at += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashMap};

    use serde_json::value::RawValue;
    use serde_json::{Value, json};

    use super::*;

    fn written<T: Serialize>(event: &T) -> Result<String, String> {
        let mut lines = Vec::new();
        write(&mut lines, event, &Notes::default()).map_err(|error| error.to_string())?;
        Ok(String::from_utf8(lines).unwrap())
    }

    fn own_domain<T: Serialize>(event: &T) -> (OwnDomain, String) {
        let notes = Notes::default();
        write(&mut Vec::new(), event, &notes).unwrap();
        (notes.domain(), notes.domain_text().to_owned())
    }

    #[derive(Serialize)]
    struct Unit;
    #[derive(Serialize)]
    struct Newtype(f64);
    #[derive(Serialize)]
    enum Choice {
        Unit,
        Newtype(f32),
        Tuple(u8, f64),
        Struct { x: f64 },
    }
    #[derive(Serialize)]
    struct Inner {
        deep: Option<f64>,
    }
    #[derive(Serialize)]
    struct Wide {
        flag: bool,
        small: i8,
        huge: u128,
        single: f32,
        letter: char,
        bytes: &'static [u8],
        nothing: Option<u8>,
        unit: Unit,
        newtype: Newtype,
        choices: Vec<Choice>,
        tuple: (u8, f64),
        keys: BTreeMap<u64, f64>,
        #[serde(flatten)]
        inner: Inner,
    }

    fn wide() -> Wide {
        Wide {
            flag: true,
            small: -1,
            huge: u128::MAX,
            single: 0.1,
            letter: '\u{2028}',
            bytes: b"\n",
            nothing: None,
            unit: Unit,
            newtype: Newtype(1.5),
            choices: vec![Choice::Unit, Choice::Newtype(1.0), Choice::Tuple(1, 2.0), Choice::Struct { x: 3.0 }],
            tuple: (1, 1e300),
            keys: BTreeMap::from([(7, 1.0)]),
            inner: Inner { deep: Some(1.0) },
        }
    }

    /// Broken, an event would be stored as something else than serde_json makes of it.
    #[test]
    fn every_kind_of_value_is_written_as_serde_json_writes_it() {
        assert_eq!(written(&wide()).unwrap(), serde_json::to_string(&wide()).unwrap());
        let value = json!({"a": [null, true, -1, 1.5, "x\n\u{85}\u{2028}"], "b": {"c": {}}});
        assert_eq!(written(&value).unwrap(), value.to_string());
    }

    /// Broken, a sensor without a reading would be stored as `null`, which is another thing.
    #[test]
    fn what_json_has_no_word_for_is_refused_wherever_it_stands() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut events: Vec<Wide> = (0..7).map(|_| wide()).collect();
            events[0].single = bad as f32;
            events[1].newtype = Newtype(bad);
            events[2].choices = vec![Choice::Newtype(bad as f32)];
            events[3].choices = vec![Choice::Tuple(1, bad), Choice::Struct { x: bad }];
            events[4].tuple = (1, bad);
            events[5].keys.insert(8, bad);
            events[6].inner.deep = Some(bad);
            for event in &events {
                let told = written(event).unwrap_err();
                assert!(told.contains("NaN"), "{told}");
            }
            assert!(written(&HashMap::from([("a", [Some(bad)])])).is_err());
        }
    }

    /// Broken, raw JSON would break a feed into lines that are none, or be stored as something else.
    #[test]
    fn raw_json_is_one_line_or_refused() {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).unwrap();
        let text = "{\r\n\t\"a b\" : [ 1.10 ,\n2e5 , \"x \\n\\\\\\\" \u{2028}\" ] , \"n\":{ } }\n";
        let line = "{\"a b\":[1.10,2e5,\"x \\n\\\\\\\" \u{2028}\"],\"n\":{}}";
        assert_eq!(written(&raw(text)).unwrap(), line);
        assert_eq!(written(&HashMap::from([("r", raw(text))])).unwrap(), format!("{{\"r\":{line}}}"));
        let digits = "9".repeat(300);
        let event = HashMap::from([("r", raw(&digits))]);
        assert_eq!(written(&event).unwrap(), format!("{{\"r\":{digits}}}"), "a long number stays");
        let pair = HashMap::from([("r", raw("\"\\ud83d\\ude00\""))]);
        assert_eq!(written(&pair).unwrap(), "{\"r\":\"\\ud83d\\ude00\"}");
        let huge = "9".repeat(310);
        for bad in [huge.as_str(), "1e400", "-1.5e999", "\"\\ud800\"", "\"\\ud800x\"", "\"\\udc00\""] {
            let told = written(&HashMap::from([("r", raw(bad))])).unwrap_err();
            assert!(told.contains("raw JSON"), "{bad}: {told}");
        }
        // Text that only pretends to be JSON.
        struct Pretender(&'static str);
        impl Serialize for Pretender {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeStruct as _;
                let mut raw = serializer.serialize_struct("$serde_json::private::RawValue", 1)?;
                raw.serialize_field("$serde_json::private::RawValue", self.0)?;
                raw.end()
            }
        }
        for bad in ["{\"a\":NaN}", "{}\n{}", "{\u{2028}}", "{\"a\":\"\n\"}", ""] {
            assert!(written(&Pretender(bad)).is_err(), "{bad:?}");
        }
    }

    /// Broken, events would go to the domain of their neighbours.
    #[test]
    fn the_domain_of_an_event_is_seen_in_every_form() {
        #[derive(Serialize)]
        struct Named<D> {
            n: u8,
            domain: D,
        }
        #[derive(Serialize)]
        #[serde(tag = "kind")]
        enum Tagged {
            One { domain: &'static str },
        }
        #[derive(Serialize)]
        struct Flat {
            #[serde(flatten)]
            inner: Named<String>,
            other: Value,
        }
        let text = (OwnDomain::Text, "a.b".to_owned());
        assert_eq!(own_domain(&Named { n: 1, domain: "a.b" }), text);
        assert_eq!(own_domain(&Named { n: 1, domain: Some("a.b") }), text);
        assert_eq!(own_domain(&json!({"domain": "a.b", "x": {"domain": "no"}})), text);
        assert_eq!(own_domain(&HashMap::from([("domain", "a.b")])), text);
        assert_eq!(own_domain(&Tagged::One { domain: "a.b" }), text);
        let other = json!({"domain": "no"});
        assert_eq!(own_domain(&Flat { inner: Named { n: 1, domain: "a.b".to_owned() }, other }), text);
        let raw = RawValue::from_string("{ \"x\": {\"domain\":1}, \"domain\": \"a.b\" }".to_owned()).unwrap();
        assert_eq!(own_domain(&raw), text);
        assert_eq!(own_domain(&Named { n: 1, domain: format_args!("a.{}", "b") }), text);
        for none in [json!({"domain": null}), json!({"domain": 7}), json!({"domain": ["a.b"]})] {
            assert_eq!(own_domain(&none).0, OwnDomain::NoText, "{none}");
        }
        assert_eq!(own_domain(&json!({"x": {"domain": "a.b"}})).0, OwnDomain::Absent);
    }

    /// Broken, garbage would be sent again and again, or good events would be set aside.
    #[test]
    fn only_an_object_is_an_event() {
        let deep = format!("{}1{}", "{\"a\":".repeat(900), "}".repeat(900));
        for good in ["{}", "{\"a\":1}", " {} ", &deep] {
            assert!(is_event(good.as_bytes()), "{good:?}");
        }
        for bad in [&b""[..], b"{", b"[]", b"{} {}", b"{\"a\":\"\xff\"}", b"{\"a\":1}x", b"7"] {
            assert!(!is_event(bad), "{bad:?}");
        }
    }
}
