//! Typed values, attributes, groups and messages.

use bytes::Bytes;

use super::codes::{Operation, Status, group};

/// One value of an attribute (RFC 8010 section 3.9).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// Out of band: the attribute or its value is not supported.
    Unsupported,
    /// Out of band: the printer does not know the value.
    Unknown,
    /// Out of band: there is no value.
    NoValue,
    /// A signed number.
    Integer(i32),
    /// True or false.
    Boolean(bool),
    /// A number of a registered list.
    Enum(i32),
    /// Bytes.
    OctetString(Bytes),
    /// A moment.
    DateTime(DateTime),
    /// Dots per inch (unit 3) or centimetre (unit 4), across and along the feed.
    Resolution {
        /// Across the feed.
        x: i32,
        /// Along the feed.
        y: i32,
        /// 3 per inch, 4 per centimetre.
        unit: u8,
    },
    /// From a number up to another, both included.
    Range(i32, i32),
    /// Named members, each with one or more values.
    Collection(Vec<Attribute>),
    /// Text in a language: (language, text).
    TextIn(String, String),
    /// A name in a language: (language, name).
    NameIn(String, String),
    /// Text for people.
    Text(String),
    /// A name.
    Name(String),
    /// A word of a registered list.
    Keyword(String),
    /// A URI.
    Uri(String),
    /// The scheme of a URI.
    UriScheme(String),
    /// A character set.
    Charset(String),
    /// A natural language.
    Language(String),
    /// A media type.
    MimeType(String),
    /// A value of a tag that this build does not know, as it came.
    Other(u8, Bytes),
}

impl Value {
    /// A keyword.
    pub fn keyword(word: impl Into<String>) -> Self {
        Self::Keyword(word.into())
    }

    /// A name.
    pub fn name(name: impl Into<String>) -> Self {
        Self::Name(name.into())
    }

    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(text.into())
    }

    /// A URI.
    pub fn uri(uri: impl Into<String>) -> Self {
        Self::Uri(uri.into())
    }

    /// The characters, of any value that consists of them.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::TextIn(_, s) | Self::NameIn(_, s) => Some(s),
            Self::Text(s) | Self::Name(s) | Self::Keyword(s) | Self::Uri(s) => Some(s),
            Self::UriScheme(s) | Self::Charset(s) | Self::Language(s) | Self::MimeType(s) => Some(s),
            _ => None,
        }
    }

    /// The number, of an integer or an enum.
    pub fn as_int(&self) -> Option<i32> {
        match self {
            Self::Integer(n) | Self::Enum(n) => Some(*n),
            _ => None,
        }
    }

    /// The truth, of a boolean.
    pub fn as_bool(&self) -> Option<bool> {
        match self {
            Self::Boolean(b) => Some(*b),
            _ => None,
        }
    }

    /// The members, of a collection.
    pub fn as_collection(&self) -> Option<&[Attribute]> {
        match self {
            Self::Collection(members) => Some(members),
            _ => None,
        }
    }
}

/// A moment with its zone (RFC 2579 DateAndTime).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DateTime {
    /// As on the wire: year (2), month, day, hour, minute, second, tenth, '+' or '-', hours and minutes from UTC.
    pub octets: [u8; 11],
}

impl DateTime {
    /// The moment that is this many milliseconds after 1970-01-01 UTC, in UTC.
    pub fn of_unix_ms(ms: u64) -> Self {
        let (year, month, day) = civil_of_days((ms / 86_400_000) as i64);
        let of_day = ms % 86_400_000;
        let [high, low] = u16::try_from(year).unwrap_or(u16::MAX).to_be_bytes();
        let octets = [
            high,
            low,
            month,
            day,
            (of_day / 3_600_000) as u8,
            (of_day / 60_000 % 60) as u8,
            (of_day / 1000 % 60) as u8,
            (of_day / 100 % 10) as u8,
            b'+',
            0,
            0,
        ];
        Self { octets }
    }
}

/// Year, month and day of a number of days after 1970-01-01 (proleptic Gregorian calendar).
pub fn civil_of_days(days: i64) -> (i64, u8, u8) {
    // Counted from 0000-03-01, so that leap days are the last of a year; 146,097 days are 400 years.
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = (of_year - (153 * shifted + 2) / 5 + 1) as u8;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 } as u8;
    (era * 400 + year + i64::from(month <= 2), month, day)
}

/// Days after 1970-01-01 of a date.
pub fn days_of_civil(year: i64, month: u8, day: u8) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let shifted = i64::from(if month > 2 { month - 3 } else { month + 9 });
    let of_year = (153 * shifted + 2) / 5 + i64::from(day) - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// A name with one or more values.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attribute {
    /// Its name.
    pub name: String,
    /// Its values, at least one in a valid message.
    pub values: Vec<Value>,
}

impl Attribute {
    /// One with one value.
    pub fn one(name: impl Into<String>, value: Value) -> Self {
        Self { name: name.into(), values: vec![value] }
    }

    /// One with these values.
    pub fn many(name: impl Into<String>, values: impl IntoIterator<Item = Value>) -> Self {
        Self { name: name.into(), values: values.into_iter().collect() }
    }

    /// The first value.
    pub fn first(&self) -> Option<&Value> {
        self.values.first()
    }
}

/// Attributes that belong together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Group {
    /// What they are of; see [`group`].
    pub tag: u8,
    /// In the order of the message.
    pub attributes: Vec<Attribute>,
}

impl Group {
    /// An empty one.
    pub fn new(tag: u8) -> Self {
        Self { tag, attributes: Vec::new() }
    }

    /// Adds an attribute with one value.
    pub fn put(&mut self, name: &str, value: Value) -> &mut Self {
        self.attributes.push(Attribute::one(name, value));
        self
    }

    /// Adds an attribute with these values; none at all becomes `no-value`.
    pub fn put_all(&mut self, name: &str, values: impl IntoIterator<Item = Value>) -> &mut Self {
        let mut attribute = Attribute::many(name, values);
        if attribute.values.is_empty() {
            attribute.values.push(Value::NoValue);
        }
        self.attributes.push(attribute);
        self
    }

    /// The attribute of this name.
    pub fn get(&self, name: &str) -> Option<&Attribute> {
        self.attributes.iter().find(|a| a.name == name)
    }

    /// The first value of the attribute of this name.
    pub fn value(&self, name: &str) -> Option<&Value> {
        self.get(name)?.first()
    }

    /// The characters of its first value.
    pub fn str(&self, name: &str) -> Option<&str> {
        self.value(name)?.as_str()
    }

    /// The number of its first value.
    pub fn int(&self, name: &str) -> Option<i32> {
        self.value(name)?.as_int()
    }

    /// The truth of its first value.
    pub fn bool(&self, name: &str) -> Option<bool> {
        self.value(name)?.as_bool()
    }
}

/// A request or an answer, without the document that may follow it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Message {
    /// Major and minor version.
    pub version: (u8, u8),
    /// The operation of a request, the status of an answer.
    pub code: u16,
    /// Chosen by the client, repeated by the printer; from 1.
    pub request_id: i32,
    /// In the order of the message.
    pub groups: Vec<Group>,
}

impl Message {
    /// A request of version 2.0 with the two attributes that come first in every message.
    pub fn request(operation: Operation, request_id: i32) -> Self {
        Self::begin(operation.code(), (2, 0), request_id)
    }

    /// An answer to a request of this version and id.
    pub fn answer(status: Status, version: (u8, u8), request_id: i32) -> Self {
        Self::begin(status.code(), version, request_id)
    }

    fn begin(code: u16, version: (u8, u8), request_id: i32) -> Self {
        let mut operation = Group::new(group::OPERATION);
        operation.put("attributes-charset", Value::Charset("utf-8".into()));
        operation.put("attributes-natural-language", Value::Language("en".into()));
        Self { version, code, request_id, groups: vec![operation] }
    }

    /// The operation, if it is a request whose operation this build knows.
    pub fn operation(&self) -> Option<Operation> {
        Operation::of(self.code)
    }

    /// The status, if it is an answer whose status this build knows.
    pub fn status(&self) -> Option<Status> {
        Status::of(self.code)
    }

    /// The first group of this tag.
    pub fn group(&self, tag: u8) -> Option<&Group> {
        self.groups.iter().find(|g| g.tag == tag)
    }

    /// The first group of this tag, added at the end if there is none.
    pub fn group_mut(&mut self, tag: u8) -> &mut Group {
        let at = self.groups.iter().position(|g| g.tag == tag).unwrap_or_else(|| {
            self.groups.push(Group::new(tag));
            self.groups.len() - 1
        });
        &mut self.groups[at]
    }

    /// An attribute of the operation group.
    pub fn operation_attribute(&self, name: &str) -> Option<&Attribute> {
        self.group(group::OPERATION)?.get(name)
    }

    /// The characters of an attribute of the operation group.
    pub fn operation_str(&self, name: &str) -> Option<&str> {
        self.operation_attribute(name)?.first()?.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_go_both_ways() {
        assert_eq!(civil_of_days(0), (1970, 1, 1));
        assert_eq!(civil_of_days(19_782), (2024, 2, 29));
        for days in (-800_000..800_000).step_by(13) {
            let (y, m, d) = civil_of_days(days);
            assert_eq!(days_of_civil(y, m, d), days);
        }
        let date = DateTime::of_unix_ms(1_709_210_096_700);
        assert_eq!(date.octets, [0x07, 0xe8, 2, 29, 12, 34, 56, 7, b'+', 0, 0]);
    }
}
