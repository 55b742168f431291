//! `Fields`: the header fields that the service reads, whoever took the head apart.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const X_AUTH: HeaderName = HeaderName::from_static("x-auth");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// A field that means something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Field {
    Accept,
    Authorization,
    ContentEncoding,
    ContentLength,
    ContentType,
    Host,
    TransferEncoding,
    XAuth,
    XForwardedFor,
    XRequestId,
}

/// How many fields there are.
pub(crate) const FIELDS: usize = Field::XRequestId as usize + 1;

/// The fields of a head. A value is what stands between the colon and the end of the line, without the
/// blanks around it.
pub(crate) trait Fields {
    /// Every value of a field, in the order in which they came.
    fn all(&self, field: Field) -> impl DoubleEndedIterator<Item = &[u8]>;

    /// The first value.
    fn first(&self, field: Field) -> Option<&[u8]> {
        self.all(field).next()
    }

    /// Is there an attribute of a CloudEvent in binary mode? Only those that each such event must have are looked for.
    fn have_cloud_event(&self) -> bool;

    /// Is the field there?
    fn has(&self, field: Field) -> bool {
        self.first(field).is_some()
    }
}

impl Field {
    fn name(self) -> HeaderName {
        match self {
            Field::Accept => header::ACCEPT,
            Field::Authorization => header::AUTHORIZATION,
            Field::ContentEncoding => header::CONTENT_ENCODING,
            Field::ContentLength => header::CONTENT_LENGTH,
            Field::ContentType => header::CONTENT_TYPE,
            Field::Host => header::HOST,
            Field::TransferEncoding => header::TRANSFER_ENCODING,
            Field::XAuth => X_AUTH,
            Field::XForwardedFor => X_FORWARDED_FOR,
            Field::XRequestId => REQUEST_ID,
        }
    }
}

impl Fields for HeaderMap {
    fn all(&self, field: Field) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.get_all(field.name()).iter().map(HeaderValue::as_bytes)
    }

    fn have_cloud_event(&self) -> bool {
        ["ce-specversion", "ce-id", "ce-type", "ce-source"].iter().any(|name| self.contains_key(*name))
    }
}

/// A value as text, if it is plain ASCII without control characters but the tab.
pub(crate) fn text(value: &[u8]) -> Option<&str> {
    let plain = value.iter().all(|&b| b == b'\t' || (b' '..=b'~').contains(&b));
    if plain { std::str::from_utf8(value).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Broken, a rule would read values otherwise than it did when they came as header values.
    #[test]
    fn text_is_what_a_header_value_calls_text() {
        for byte in (0..=u8::MAX).filter(|byte| HeaderValue::from_bytes(&[*byte]).is_ok()) {
            let value = [b'a', byte];
            let known = HeaderValue::from_bytes(&value).unwrap();
            assert_eq!(text(&value), known.to_str().ok(), "{byte}");
        }
    }
}
