//! Addresses of what is on the server: `OFFICE/server/home/PATH`, `OFFICE/server/public/NAME/PATH`. No IO.
//!
//! A unit or a machine may be called "server" too; then the server's part of the office is called "central-server", and
//! if that is taken "atrium-server", the same on every node that has heard of the same members.

use crate::catalogue::names;
use crate::office::View;
use common::error::Result;
use common::model::fold;
use proto::v1;

const WORDS: [&str; 3] = ["server", "central-server", "atrium-server"];

/// Something on the server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// All of it.
    Top,
    /// The public directories.
    Public,
    /// A directory or file.
    Entry {
        /// "home" or "public/plans".
        root: String,
        /// Below it; empty is the root itself.
        path: String,
    },
}

/// What the server's part of the office is called; `None` if the office has no server.
pub fn server_word(view: &View) -> Option<&'static str> {
    view.server()?;
    let taken = |word: &&&str| {
        view.present().any(|m| {
            let first = m.unit.split('/').next().filter(|u| !u.is_empty()).unwrap_or(&m.display_name);
            fold(first) == **word
        })
    };
    WORDS.iter().find(|word| !taken(word)).copied()
}

/// Below which address everything on the server is; `None` if the office has none.
pub fn server_address(view: &View) -> Option<String> {
    server_word(view).map(|word| format!("{}/{word}", view.name()))
}

impl Place {
    /// Reads an address; `None` if it is not one of the server's.
    ///
    /// # Errors
    /// PATH_INVALID, NAME_INVALID.
    pub fn read(view: &View, address: &str) -> Result<Option<Self>> {
        let Some(word) = server_word(view) else { return Ok(None) };
        let segments = names::parse(address)?;
        let [office, server, rest @ ..] = &segments[..] else { return Ok(None) };
        if fold(office) != fold(view.name()) || fold(server) != word {
            return Ok(None);
        }
        let rest: Vec<&str> = rest.iter().map(String::as_str).filter(|s| *s != names::ANY).collect();
        Ok(Some(match rest[..] {
            [] => Self::Top,
            ["public"] => Self::Public,
            ["public", name, ref path @ ..] => Self::Entry { root: format!("public/{name}"), path: path.join("/") },
            [root, ref path @ ..] => Self::Entry { root: root.to_owned(), path: path.join("/") },
        }))
    }

    /// As the server's contract writes it; `None` for what is no directory or file there.
    pub fn wire(&self) -> Option<v1::Path> {
        match self {
            Self::Entry { root, path } => Some(v1::Path { root: root.clone(), path: path.clone() }),
            _ => None,
        }
    }
}

/// The address of something on the server.
pub fn address_of(view: &View, root: &str, path: &str) -> String {
    // Another's home cannot be seen, so there is one: "home".
    let root = if root.starts_with("home") { "home" } else { root };
    let word = server_word(view).unwrap_or(WORDS[0]);
    let full = format!("{}/{word}/{root}/{path}", view.name());
    full.trim_end_matches('/').to_owned()
}

/// True if the address is the office itself, where the server's directories are shown too.
pub fn is_office(view: &View, address: &str) -> bool {
    let address = address.trim_matches('/');
    let address = address.strip_suffix("/*").unwrap_or(address);
    address.is_empty() || address == names::ANY || fold(address) == fold(view.name())
}
