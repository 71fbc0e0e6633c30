//! Questions to people, and secrets from files.

use crate::output::{Output, usage};
use common::error::{Error, Reason, Result};
use std::io::{BufRead, Read, Write};
use std::path::Path;
use zeroize::Zeroizing;

/// Longest secret that is read from a file.
const SECRET_MAX: u64 = 4096;

/// A secret that is wiped when dropped.
pub type Secret = Zeroizing<String>;

/// A password, code or token from a file or standard input, or asked for without showing it.
///
/// # Errors
/// `USAGE` if it would have to be asked for but nobody can be asked, `IO_FAILED`.
pub fn secret(out: &Output, file: Option<&Path>, what: &str, option: &str) -> Result<Secret> {
    if let Some(path) = file {
        return secret_file(path);
    }
    if !out.interactive {
        return Err(usage(
            format!("the {what} is needed, but there is no terminal to ask at"),
            format!("give it with `{option} FILE`, or `{option} -` for standard input"),
        ));
    }
    let text = rpassword::prompt_password(format!("{}: ", capitalized(what))).map_err(|e| match e.kind() {
        std::io::ErrorKind::Interrupted => Error::new(Reason::Cancelled, "nothing was done")
            .why_is(format!("the {what} was not given"))
            .fix_is("give the command again"),
        _ => Error::new(Reason::IoFailed, format!("the {what} could not be read")).caused_by(e),
    })?;
    not_empty(Zeroizing::new(text), what)
}

/// A new password, asked for twice.
///
/// # Errors
/// As [`secret`]; `USAGE` if both differ.
pub fn new_password(out: &Output, file: Option<&Path>, option: &str) -> Result<Secret> {
    let first = secret(out, file, "new password", option)?;
    if file.is_none() {
        let second = secret(out, None, "new password again", option)?;
        if *first != *second {
            return Err(usage("the two passwords differ", "type the same password twice"));
        }
    }
    Ok(first)
}

/// A secret from a file; `-` is standard input. One line end at its end is passed over.
///
/// # Errors
/// `IO_FAILED`, `USAGE`.
pub fn secret_file(path: &Path) -> Result<Secret> {
    let mut text = Zeroizing::new(String::new());
    let read = if path == Path::new("-") {
        std::io::stdin().lock().take(SECRET_MAX + 1).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(SECRET_MAX + 1).read_to_string(&mut text))
    };
    read.map_err(|e| {
        Error::new(Reason::IoFailed, format!("the secret in {} cannot be read", path.display()))
            .why_is(e.to_string())
            .fix_is("check the file's name and rights")
            .caused_by(e)
    })?;
    if text.len() as u64 > SECRET_MAX {
        return Err(usage(format!("{} is too long for a secret", path.display()), "give a file with only the secret"));
    }
    while text.ends_with(['\n', '\r']) {
        text.pop();
    }
    not_empty(text, "secret")
}

fn not_empty(text: Secret, what: &str) -> Result<Secret> {
    if text.is_empty() { Err(usage(format!("the {what} is empty"), "give one")) } else { Ok(text) }
}

/// Makes sure that something that cannot be undone is meant: `--yes`, or the named word typed at the terminal.
///
/// # Errors
/// `USAGE` if nobody can be asked, `CANCELLED` if the answer is another one.
pub async fn confirm(out: &Output, yes: bool, what: &str, word: &str) -> Result<()> {
    if yes {
        return Ok(());
    }
    if !out.interactive {
        return Err(usage(format!("{what}: this cannot be undone and was not confirmed"), "add --yes if you mean it"));
    }
    {
        let mut stderr = std::io::stderr().lock();
        let _ = write!(stderr, "{what}. This cannot be undone. Type {word} to go on: ");
        let _ = stderr.flush();
    }
    // On a thread of its own, so that Ctrl-C ends the command and not only the line.
    let read = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        std::io::stdin().lock().take(1024).read_line(&mut answer).map(|_| answer)
    });
    let answer = read.await.map_err(|e| Error::internal("a thread ended").caused_by(e))??;
    if answer.trim() == word {
        return Ok(());
    }
    Err(Error::new(Reason::Cancelled, "nothing was done")
        .why_is("it was not confirmed")
        .fix_is(format!("type {word} when asked, or add --yes")))
}

fn capitalized(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|c| c.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silent() -> Output {
        Output {
            json: false,
            quiet: false,
            verbose: false,
            interactive: false,
            color: false,
            color_err: false,
            progress: false,
        }
    }

    #[test]
    fn secrets_come_from_files_and_lose_their_line_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        std::fs::write(&path, " pass word \r\n").unwrap();
        assert_eq!(*secret(&silent(), Some(&path), "password", "--password-file").unwrap(), " pass word ");
        std::fs::write(&path, "\n").unwrap();
        assert!(secret_file(&path).is_err());
        std::fs::write(&path, "x".repeat(5000)).unwrap();
        assert!(secret_file(&path).is_err());
        assert!(secret_file(&dir.path().join("missing")).unwrap_err().fix().contains("name"));
    }

    #[tokio::test]
    async fn without_a_terminal_nothing_is_asked_and_nothing_is_taken_as_agreed() {
        let error = secret(&silent(), None, "password", "--password-file").unwrap_err();
        assert!(error.fix().contains("--password-file"));
        assert!(confirm(&silent(), false, "everything goes", "home:").await.unwrap_err().fix().contains("--yes"));
        assert!(confirm(&silent(), true, "everything goes", "home:").await.is_ok());
    }
}
