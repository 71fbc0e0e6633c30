//! Codes such as "7-amber-lion-canal": a public number and three secret words.

use super::words::{WORDS, nearest};
use crate::error::{Error, Reason, Result};
use crate::identity::random_bytes;
use std::fmt;
use std::str::FromStr;

/// Secret words of a code.
const WORD_COUNT: usize = 3;
/// Longest number: the server has at most a hundred at a time.
const MAX_DIGITS: usize = 6;
/// Anything longer than this is not read.
const MAX_TEXT: usize = 200;

/// A one-time code. Prints only its public part with `Debug`; [`Code::reveal`] gives the whole.
#[derive(Clone, PartialEq, Eq)]
pub struct Code {
    nameplate: u32,
    words: [&'static str; WORD_COUNT],
}

impl Code {
    /// A new code under this number, with random words.
    ///
    /// # Panics
    /// If the number has more than six digits: the server chooses small ones.
    pub fn generate(nameplate: u32) -> Self {
        assert!(nameplate < 10u32.pow(MAX_DIGITS as u32), "a nameplate has at most six digits");
        let random = random_bytes::<WORD_COUNT>();
        Self { nameplate, words: random.map(|byte| WORDS[usize::from(byte)]) }
    }

    /// The public part: names the invite, reveals nothing.
    pub fn nameplate(&self) -> String {
        self.nameplate.to_string()
    }

    /// The whole code, as it is told to a person: "7-amber-lion-canal".
    pub fn reveal(&self) -> String {
        let [a, b, c] = self.words;
        format!("{}-{a}-{b}-{c}", self.nameplate)
    }
}

impl FromStr for Code {
    type Err = Error;

    /// Reads a code as people type it: any case; blanks, dots, commas or underscores for dashes. A word that is not one
    /// of the list is refused here, with the one that was probably meant, so that a slip does not burn the code.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = |what: String| {
            Error::new(Reason::FieldInvalid, what)
                .why_is("a code is a number and three words, like 7-amber-lion-canal")
                .fix_is("type the code as it was given to you; this one was not used up")
        };
        if text.len() > MAX_TEXT {
            return Err(wrong("the code is too long".into()));
        }
        let parts: Vec<String> = text
            .split(|c: char| c.is_whitespace() || matches!(c, '-' | '_' | '.' | ',' | '\u{2010}'..='\u{2015}'))
            .filter(|part| !part.is_empty())
            .map(str::to_lowercase)
            .collect();
        let [number, first, second, third] = parts.as_slice() else {
            return Err(wrong(format!("the code has {} parts instead of 4", parts.len())));
        };
        if number.len() > MAX_DIGITS || !number.bytes().all(|b| b.is_ascii_digit()) {
            return Err(wrong("the code does not begin with a number".into()));
        }
        let nameplate = number.parse().map_err(|_| wrong("the code does not begin with a number".into()))?;
        let find = |word: &String| {
            WORDS.binary_search(&word.as_str()).map(|at| WORDS[at]).map_err(|_| match nearest(word) {
                Some(meant) => wrong(format!("no code has the word {word:?}; was it {meant:?}?")),
                None => wrong(format!("no code has the word {word:?}")),
            })
        };
        Ok(Self { nameplate, words: [find(first)?, find(second)?, find(third)?] })
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Code({}-…)", self.nameplate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_type_is_understood() {
        let code: Code = "7-amber-lion-canal".parse().unwrap();
        for text in
            ["7 amber lion canal", " 7-Amber_LION--canal\n", "007.amber,lion – canal", "7\tamber lion\u{a0}canal"]
        {
            assert_eq!(text.parse::<Code>().unwrap(), code, "{text:?}");
        }
        assert_eq!((code.nameplate().as_str(), code.reveal().as_str()), ("7", "7-amber-lion-canal"));
    }

    #[test]
    fn a_slip_is_noticed_before_the_code_is_burned() {
        let error = "7-amber-lyon-canal".parse::<Code>().unwrap_err();
        assert!(error.is(Reason::FieldInvalid) && error.message().contains("\"lion\""), "{error:?}");
        for text in [
            "",
            "7",
            "amber-lion-canal",
            "7-amber-lion",
            "7-amber-lion-canal-otter",
            "x-amber-lion-canal",
            "1234567-amber-lion-canal",
            "-7-amber-lion-",
            "+7-amber-lion-canal",
        ] {
            assert!(text.parse::<Code>().unwrap_err().is(Reason::FieldInvalid), "{text:?}");
        }
        assert!("7-amber-lion-canal ".repeat(20).parse::<Code>().is_err());
    }

    #[test]
    fn debug_does_not_reveal_it() {
        let code = Code::generate(42);
        assert_eq!(format!("{code:?}"), "Code(42-…)");
    }

    proptest! {
        #[test]
        fn a_code_survives_being_told(nameplate in 0u32..1_000_000) {
            let code = Code::generate(nameplate);
            prop_assert_eq!(code.reveal().parse::<Code>().unwrap(), code.clone());
            prop_assert_eq!(code.reveal().to_uppercase().replace('-', "  ").parse::<Code>().unwrap(), code);
        }

        #[test]
        fn random_text_never_panics(text in any::<String>()) {
            let _ = text.parse::<Code>();
        }

        #[test]
        fn nearly_codes_never_panic(text in "[0-9]{1,8}[- ][a-zA-Zäß]{0,12}[- ][a-z]{1,9}[- ]\\PC{0,9}") {
            let _ = text.parse::<Code>();
        }
    }
}
