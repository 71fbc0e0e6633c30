//! `completions` and `generate`: nothing here needs a server.

use super::Context;
use crate::args::{Cli, Completions, Generate, GenerateWhat};
use crate::exit::Exit;
use crate::reference;
use clap::CommandFactory;
use clap_complete::Shell;
use common::error::{Error, Reason, Result};
use std::path::Path;

pub(super) fn completions(c: &Context, args: Completions) -> Result<Exit> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "atrium", &mut script);
    c.out.raw(&script)?;
    Ok(Exit::Ok)
}

pub(super) fn generate(c: &Context, args: Generate) -> Result<Exit> {
    match args.what {
        GenerateWhat::Docs { file, check } => {
            let text = reference::markdown();
            match file {
                None => c.out.raw(text.as_bytes())?,
                Some(file) if check => {
                    if std::fs::read_to_string(&file).map_err(|e| failed(&file, e))? != text {
                        return Err(Error::new(Reason::EtagStale, format!("{} is not current", file.display()))
                            .why_is("the parser has changed since it was written")
                            .fix_is(format!("atrium generate docs {}", file.display())));
                    }
                }
                Some(file) => std::fs::write(&file, text).map_err(|e| failed(&file, e))?,
            }
        }
        GenerateWhat::Man { directory } => {
            std::fs::create_dir_all(&directory).map_err(|e| failed(&directory, e))?;
            for (name, page) in reference::man_pages()? {
                let file = directory.join(name);
                std::fs::write(&file, page).map_err(|e| failed(&file, e))?;
            }
        }
        GenerateWhat::Completions { directory } => {
            std::fs::create_dir_all(&directory).map_err(|e| failed(&directory, e))?;
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                clap_complete::generate_to(shell, &mut Cli::command(), "atrium", &directory)
                    .map_err(|e| failed(&directory, e))?;
            }
        }
    }
    Ok(Exit::Ok)
}

fn failed(path: &Path, error: std::io::Error) -> Error {
    Error::new(Reason::IoFailed, format!("{} cannot be read or written", path.display()))
        .why_is(error.to_string())
        .fix_is("check the path and its rights")
        .caused_by(error)
}
