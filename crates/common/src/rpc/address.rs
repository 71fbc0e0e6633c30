//! "host:port" as people write it.

use crate::error::{Error, Reason, Result};
use rustls_pki_types::DnsName;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// Where a central server listens when nothing else is said.
pub const DEFAULT_PORT: u16 = 7443;

/// A server's host name or address, and port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServerAddress {
    host: Host,
    port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Host {
    Name(String),
    Address(IpAddr),
}

impl ServerAddress {
    /// For a Unix socket, where it only fills the place in the protocol.
    pub(super) fn local() -> Self {
        Self { host: Host::Name("localhost".into()), port: 80 }
    }

    /// The host, without brackets.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Name(name) => name.clone(),
            Host::Address(address) => address.to_string(),
        }
    }

    /// The port.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for ServerAddress {
    type Err = Error;

    /// Reads `host`, `host:port`, `192.0.2.1:port`, `[2001:db8::1]:port` or `2001:db8::1`.
    fn from_str(text: &str) -> Result<Self> {
        Self::with_default_port(text, DEFAULT_PORT)
    }
}

impl ServerAddress {
    /// The same with another port where the text names none.
    ///
    /// # Errors
    /// FIELD_INVALID.
    pub fn with_default_port(text: &str, default_port: u16) -> Result<Self> {
        let text = text.trim();
        let wrong = || {
            Error::new(Reason::FieldInvalid, format!("not a server's address: {text:?}"))
                .fix_is("write it like office.example, office.example:7443, 192.0.2.1 or [2001:db8::1]:7443")
        };
        if let Ok(v6) = text.parse::<Ipv6Addr>() {
            return Ok(Self { host: Host::Address(v6.into()), port: default_port });
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (inside, behind) = rest.split_once(']').ok_or_else(wrong)?;
            let v6: Ipv6Addr = inside.parse().map_err(|_| wrong())?;
            let port = match behind {
                "" => None,
                _ => Some(behind.strip_prefix(':').ok_or_else(wrong)?),
            };
            (Host::Address(v6.into()), port)
        } else {
            let (host, port) = match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            };
            let host = match host.parse::<IpAddr>() {
                Ok(address) => Host::Address(address),
                // All digits and dots is a mistyped address, never a name.
                Err(_) if host.bytes().all(|b| b.is_ascii_digit() || b == b'.') => return Err(wrong()),
                Err(_) => Host::Name(DnsName::try_from(host).map_err(|_| wrong())?.as_ref().to_owned()),
            };
            (host, port)
        };
        let port = match port {
            None => default_port,
            // `parse` alone would take "+1".
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().map_err(|_| wrong())?,
            Some(_) => return Err(wrong()),
        };
        if port == 0 {
            return Err(wrong());
        }
        Ok(Self { host, port })
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Name(name) => write!(f, "{name}:{}", self.port),
            Host::Address(IpAddr::V4(v4)) => write!(f, "{v4}:{}", self.port),
            Host::Address(IpAddr::V6(v6)) => write!(f, "[{v6}]:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_write_is_understood() {
        for (text, means) in [
            ("office", "office:7443"),
            (" office.example ", "office.example:7443"),
            ("office_1:8000", "office_1:8000"),
            ("192.0.2.7", "192.0.2.7:7443"),
            ("192.0.2.7:1", "192.0.2.7:1"),
            ("2001:db8::1", "[2001:db8::1]:7443"),
            ("[2001:db8::1]", "[2001:db8::1]:7443"),
            ("[::1]:99", "[::1]:99"),
        ] {
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), means);
        }
    }

    #[test]
    fn what_cannot_be_an_address_is_refused() {
        for text in [
            "",
            " ",
            ":1",
            "a:",
            "a:b",
            "a:0",
            "a:65536",
            "a:+1",
            "a:1:2",
            "a b",
            "https://a",
            "a/b",
            "[::1",
            "[::1]x",
            "[a]:1",
            "192.0.2",
            "192.0.2.256",
            "1",
            "ä",
            "a\n",
            "-",
        ] {
            // A trailing line end is cut off by trimming; everything else must be refused.
            if text.trim() == "a" {
                continue;
            }
            assert!(text.parse::<ServerAddress>().is_err(), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn random_text_never_panics_and_what_is_read_is_written_the_same(text in ".{0,60}") {
            if let Ok(address) = text.parse::<ServerAddress>() {
                prop_assert_eq!(address.to_string().parse::<ServerAddress>().unwrap(), address);
            }
        }
    }
}
